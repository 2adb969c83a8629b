import { UniqueConstraintViolationException } from '@mikro-orm/core';
import { EntityManager } from '@mikro-orm/postgresql';
import { ConflictException, Injectable, NotFoundException } from '@nestjs/common';
import { Customer } from './entities';

@Injectable()
export class CustomersService {
  constructor(private readonly em: EntityManager) {}

  async register(name: string, email: string): Promise<Customer> {
    const customer = this.em.create(Customer, { name, email });
    try {
      await this.em.persistAndFlush(customer);
    } catch (error) {
      if (error instanceof UniqueConstraintViolationException) throw new ConflictException(`${email} has an account`);
      throw error;
    }
    return customer;
  }

  async byEmail(email: string): Promise<Customer> {
    const found = await this.em.findOne(Customer, { email }, { populate: ['orders'] });
    if (!found) throw new NotFoundException(email);
    return found;
  }

  async rename(email: string, name: string): Promise<Customer> {
    const customer = await this.byEmail(email);
    customer.name = name;
    await this.em.flush();
    return customer;
  }

  async forget(email: string): Promise<void> {
    const customer = await this.byEmail(email);
    if (customer.orders.length > 0) throw new ConflictException(`${email} has orders`);
    await this.em.removeAndFlush(customer);
  }
}
