import { Body, Controller, Get, HttpCode, Param, ParseIntPipe, Post, Query } from '@nestjs/common';
import { type Wanted, OrdersService } from './orders.service';

@Controller('orders')
export class OrdersController {
  constructor(private readonly orders: OrdersService) {}

  @Post()
  async place(@Body() { email, code, wanted }: { email: string; code: string; wanted: Wanted[] }) {
    const { id, status } = await this.orders.place(email, code, wanted);
    return { id, status };
  }

  @Get()
  async list(@Query('email') email: string) {
    return (await this.orders.list(email)).map(({ id, status }) => ({ id, status }));
  }

  @Get(':id')
  async show(@Param('id', ParseIntPipe) id: number) {
    const { status, customer, lines, shipments } = await this.orders.byId(id);
    return {
      id,
      status,
      email: customer.email,
      lines: lines.getItems().map(({ product, quantity }) => ({ sku: product.sku, quantity })),
      shipments: shipments.getItems().map(({ tracking }) => tracking),
      totalCents: await this.orders.total(id),
    };
  }

  @Post(':id/payment')
  @HttpCode(200)
  async pay(@Param('id', ParseIntPipe) id: number) {
    return { id, status: (await this.orders.pay(id)).status };
  }

  @Post(':id/cancellation')
  @HttpCode(200)
  async cancel(@Param('id', ParseIntPipe) id: number, @Body() { code }: { code: string }) {
    return { id, status: (await this.orders.cancel(id, code)).status };
  }

  @Post(':id/shipments')
  async ship(@Param('id', ParseIntPipe) order: number, @Body() { code, tracking }: { code: string; tracking: string }) {
    const { id } = await this.orders.ship(order, code, tracking);
    return { id, order, tracking };
  }
}
