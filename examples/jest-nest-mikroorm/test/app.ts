import 'reflect-metadata';
import type { INestApplication } from '@nestjs/common';
import { Test } from '@nestjs/testing';
import { MikroORM, RequestContext } from '@mikro-orm/core';
import request from 'supertest';
import { AppModule } from '../src/app.module';

/** The application of a file; its pool stays open from test to test. */
export function application() {
  let app: INestApplication;

  beforeAll(async () => {
    const module = await Test.createTestingModule({ imports: [AppModule] }).compile();
    app = module.createNestApplication({ logger: false });
    await app.init();
  });
  afterAll(() => app.close());

  return {
    http: () => request(app.getHttpServer()),
    get: <T>(type: new (...given: never[]) => T): T => app.get(type),
    /** An EntityManager of its own, with nothing in its identity map. */
    fork: () => app.get(MikroORM).em.fork(),
    /** As in a request: the services share one identity map. */
    within: <T>(work: () => Promise<T>): Promise<T> => RequestContext.create(app.get(MikroORM).em, work),
  };
}
