import { configDefaults, defineConfig } from 'vitest/config';

const { SHARED, ARTIFACTS, PGHARNESS_WORKERS } = process.env;

export default defineConfig({
  test: {
    setupFiles: [SHARED ? 'test/shared.ts' : 'pg-harness/vitest', ...(ARTIFACTS ? ['test/artifacts.ts'] : []), 'test/memory.ts'],
    maxWorkers: SHARED ? 4 : Number(PGHARNESS_WORKERS ?? 1),
    // One process for each worker: its client is connected once, and stays so over all files and resets.
    isolate: false,
    // It is about the resets between its tests, which a shared database has not.
    exclude: SHARED ? ['test/client.spec.ts', ...configDefaults.exclude] : configDefaults.exclude,
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
