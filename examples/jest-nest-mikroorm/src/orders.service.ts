import { EntityManager } from '@mikro-orm/postgresql';
import { ConflictException, Injectable, NotFoundException } from '@nestjs/common';
import { Customer, Order, OrderLine, Product, Shipment, Warehouse } from './entities';
import { StockService } from './stock.service';

export type Wanted = { sku: string; quantity: number };

@Injectable()
export class OrdersService {
  constructor(private readonly em: EntityManager, private readonly stock: StockService) {}

  place(email: string, code: string, wanted: Wanted[]): Promise<Order> {
    return this.em.transactional(async (em) => {
      const customer = await em.findOne(Customer, { email });
      if (!customer) throw new NotFoundException(email);
      const order = em.create(Order, { customer });
      for (const { sku, quantity } of wanted) {
        const product = await em.findOne(Product, { sku, retired: false });
        if (!product) throw new NotFoundException(sku);
        await this.stock.change(em, code, sku, -quantity);
        order.lines.add(em.create(OrderLine, { order, product, quantity, priceCents: product.priceCents }));
      }
      await em.persistAndFlush(order);
      return order;
    });
  }

  async byId(id: number): Promise<Order> {
    const found = await this.em.findOne(Order, id, { populate: ['customer', 'lines.product', 'shipments'] });
    if (!found) throw new NotFoundException(id);
    return found;
  }

  list(email: string): Promise<Order[]> {
    return this.em.find(Order, { customer: { email } }, { orderBy: { id: 'asc' } });
  }

  async total(id: number): Promise<number> {
    const { lines } = await this.byId(id);
    return lines.getItems().reduce((sum, { quantity, priceCents }) => sum + quantity * priceCents, 0);
  }

  async pay(id: number): Promise<Order> {
    const order = await this.byId(id);
    if (order.status !== 'placed') throw new ConflictException(`order ${id} is ${order.status}`);
    order.status = 'paid';
    await this.em.flush();
    return order;
  }

  async cancel(id: number, code: string): Promise<Order> {
    return this.em.transactional(async (em) => {
      const order = await em.findOneOrFail(Order, id, { populate: ['lines.product'], failHandler: () => new NotFoundException(id) });
      if (order.status !== 'placed') throw new ConflictException(`order ${id} is ${order.status}`);
      for (const { product, quantity } of order.lines) await this.stock.change(em, code, product.sku, quantity);
      order.status = 'cancelled';
      return order;
    });
  }

  ship(id: number, code: string, tracking: string): Promise<Shipment> {
    return this.em.transactional(async (em) => {
      const order = await em.findOneOrFail(Order, id, { failHandler: () => new NotFoundException(id) });
      if (order.status !== 'paid') throw new ConflictException(`order ${id} is ${order.status}`);
      const warehouse = await em.findOneOrFail(Warehouse, { code }, { failHandler: () => new NotFoundException(code) });
      order.status = 'shipped';
      const shipment = em.create(Shipment, { order, warehouse, tracking });
      await em.persistAndFlush(shipment);
      return shipment;
    });
  }
}
