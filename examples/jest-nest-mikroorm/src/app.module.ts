import { MikroOrmModule } from '@mikro-orm/nestjs';
import { Module } from '@nestjs/common';
import { CatalogueService } from './catalogue.service';
import { CustomersController } from './customers.controller';
import { CustomersService } from './customers.service';
import config from './mikro-orm.config';
import { OrdersController } from './orders.controller';
import { OrdersService } from './orders.service';
import { ProductsController } from './products.controller';
import { StockService } from './stock.service';
import { WarehousesController } from './warehouses.controller';

@Module({
  imports: [MikroOrmModule.forRoot(config)],
  controllers: [CustomersController, ProductsController, WarehousesController, OrdersController],
  providers: [CustomersService, CatalogueService, StockService, OrdersService],
})
export class AppModule {}
