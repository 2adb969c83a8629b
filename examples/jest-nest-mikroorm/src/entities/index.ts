export * from './customer';
export * from './order';
export * from './order-line';
export * from './product';
export * from './shipment';
export * from './stock';
export * from './warehouse';
