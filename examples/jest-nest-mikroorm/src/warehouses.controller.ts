import { Body, Controller, HttpCode, Param, Post } from '@nestjs/common';
import { StockService } from './stock.service';

@Controller('warehouses')
export class WarehousesController {
  constructor(private readonly stock: StockService) {}

  @Post()
  async open(@Body() { code }: { code: string }) {
    const { id } = await this.stock.open(code);
    return { id, code };
  }

  @Post(':code/deliveries')
  async receive(@Param('code') code: string, @Body() { sku, quantity }: { sku: string; quantity: number }) {
    return { code, sku, quantity: (await this.stock.receive(code, sku, quantity)).quantity };
  }

  @Post(':code/moves')
  @HttpCode(204)
  move(@Param('code') code: string, @Body() { to, sku, quantity }: { to: string; sku: string; quantity: number }) {
    return this.stock.move(code, to, sku, quantity);
  }
}
