import { Body, Controller, Delete, Get, HttpCode, Param, Post, Put } from '@nestjs/common';
import { CatalogueService } from './catalogue.service';
import { StockService } from './stock.service';

@Controller('products')
export class ProductsController {
  constructor(private readonly catalogue: CatalogueService, private readonly stock: StockService) {}

  @Post()
  add(@Body() { sku, title, priceCents }: { sku: string; title: string; priceCents: number }) {
    return this.catalogue.add(sku, title, priceCents);
  }

  @Get()
  list() {
    return this.catalogue.list();
  }

  @Get(':sku')
  async show(@Param('sku') sku: string) {
    const { title, priceCents } = await this.catalogue.bySku(sku);
    return { sku, title, priceCents, level: await this.stock.level(sku) };
  }

  @Put(':sku/price')
  price(@Param('sku') sku: string, @Body() { priceCents }: { priceCents: number }) {
    return this.catalogue.price(sku, priceCents);
  }

  @Delete(':sku')
  @HttpCode(204)
  retire(@Param('sku') sku: string) {
    return this.catalogue.retire(sku);
  }
}
