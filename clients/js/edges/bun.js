import { afterAll, afterEach, beforeAll, beforeEach } from 'bun:test';
import { PATIENCE, PgHarnessError, pristine, reset, use } from '../core.js';

// Bun sets it where it runs files side by side; else there is one process for all of them.
use(process.env.JEST_WORKER_ID ?? '1', { command: 'bun test', option: '--parallel' });

let running = 0;

/** A hook for tests that run one after the other. */
const alone = (hook) => async () => {
  if (++running > 1) throw new PgHarnessError('tests of one file that run at once (`test.concurrent`) share its database: use pg-harness/bun/file for them');
  await hook();
};

/** Called once by a module that bunfig.toml preloads. */
function setUp(before) {
  const file = Bun.main;
  beforeAll(() => reset({ to: 'template' }), PATIENCE);
  if (before !== 'test') {
    beforeEach(() => {
      if (Bun.main !== file) {
        throw new PgHarnessError(`pg-harness/bun/${before} has to begin anew with each file: \`bun test --isolate\`, or --parallel`);
      }
    });
  }
  pristine(before, {
    beforeEach: (hook) => {
      beforeEach(alone(hook), PATIENCE);
      afterEach(() => void running--);
    },
    afterAll: (hook) => afterAll(hook, PATIENCE),
  });
}

export { setUp };
