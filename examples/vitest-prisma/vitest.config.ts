import { defineConfig } from 'vitest/config';

const shared = process.env.SHARED !== undefined;

export default defineConfig({
  test: {
    setupFiles: [shared ? 'test/shared.ts' : 'pg-harness/vitest', 'test/close.ts'],
    testTimeout: 30_000,
    maxWorkers: shared ? 8 : Number(process.env.PGHARNESS_WORKERS ?? 1),
  },
});
