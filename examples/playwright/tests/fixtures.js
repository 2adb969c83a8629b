import { expect, test as own } from '@playwright/test';

// SHARED=1 shows what happens without pg-harness/playwright: all workers on one database.
const base = process.env.SHARED ? own : (await import('pg-harness/playwright')).test;

/** A server for each worker, on the worker's database. It stays up over the resets, and so does its pool. */
export const test = base.extend({
  app: [
    async ({}, use) => {
      // Here, and not at the top: a module of yours may read its variables when it is imported.
      const { start } = await import('../src/server.js');
      const app = await start();
      await use(app);
      await app.close();
    },
    { scope: 'worker' },
  ],
  baseURL: ({ app }, use) => use(app.url),
});

export { expect };
