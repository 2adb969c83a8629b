import { afterAll, beforeEach } from 'vitest';
import { PATIENCE, PgHarnessError, pristine, reset, use } from '../core.js';

/** Called once by a set-up file, which Vitest runs before each test file, in the same process or in another one. */
async function setUp(before) {
  const { VITEST_POOL_ID } = process.env;
  // Some Vitest (4.0.18) gives several workers the number 0.
  if (VITEST_POOL_ID === undefined || VITEST_POOL_ID === '0') {
    throw new PgHarnessError(
      VITEST_POOL_ID === '0'
        ? 'this Vitest says that its worker is number 0 (VITEST_POOL_ID), as 4.0.18 did for several at once: use another version'
        : 'VITEST_POOL_ID is not set: pg-harness/vitest belongs into the setupFiles of vitest.config, and Vitest must run it',
    );
  }
  use(VITEST_POOL_ID, { command: 'npx vitest run', option: 'maxWorkers in vitest.config' });
  await reset({ to: 'template' });
  pristine(before, {
    beforeEach: (hook) =>
      beforeEach(async ({ task }) => {
        if (task.concurrent) {
          throw new PgHarnessError(
            'concurrent tests of one file share one database: a reset before one of them would hit the others. Use pg-harness/vitest/file',
          );
        }
        await hook();
      }, PATIENCE),
    afterAll: (hook) => afterAll(hook, PATIENCE),
  });
}

export { setUp };
