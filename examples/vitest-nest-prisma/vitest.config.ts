import { defineConfig } from 'vitest/config';

const { SHARED, SCHEMA, PGHARNESS_WORKERS } = process.env;
const setup = SHARED ? ['test/shared.ts'] : SCHEMA ? ['pg-harness/vitest/file', 'test/schema.ts'] : ['pg-harness/vitest'];

export default defineConfig({
  test: { include: ['test/*.e2e.spec.ts'], setupFiles: setup, maxWorkers: SHARED ? 3 : Number(PGHARNESS_WORKERS ?? 1), testTimeout: 30_000, hookTimeout: 60_000 },
});
