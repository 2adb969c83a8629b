import { wrap } from '@mikro-orm/core';
import { Body, Controller, Delete, Get, HttpCode, Param, Patch, Post } from '@nestjs/common';
import { CustomersService } from './customers.service';

@Controller('customers')
export class CustomersController {
  constructor(private readonly customers: CustomersService) {}

  @Post()
  async register(@Body() { name, email }: { name: string; email: string }) {
    const { id } = await this.customers.register(name, email);
    return { id, name, email };
  }

  @Get(':email')
  async show(@Param('email') email: string) {
    return wrap(await this.customers.byEmail(email)).toObject();
  }

  @Patch(':email')
  async rename(@Param('email') email: string, @Body() { name }: { name: string }) {
    return wrap(await this.customers.rename(email, name)).toObject();
  }

  @Delete(':email')
  @HttpCode(204)
  forget(@Param('email') email: string) {
    return this.customers.forget(email);
  }
}
