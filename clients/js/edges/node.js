import { after, beforeEach } from 'node:test';
import { PATIENCE, PgHarnessError, lease, pristine, release, reset, use } from '../core.js';

const { NODE_TEST_CONTEXT, NODE_TEST_WORKER_ID, PGHARNESS_COPIES } = process.env;
const together = process.execArgv.some((word) => /^--(experimental-)?test-isolation=none$/.test(word));
// `node --test` itself runs no tests: it starts a process for each file, with the same --import.
const runner = process.execArgv.includes('--test') && NODE_TEST_CONTEXT === undefined && !together;
const command = 'node --import pg-harness/node --test';

if (!runner) {
  // Newer versions of Node number the processes; a copy of `run --copies` has its one database.
  const worker = NODE_TEST_WORKER_ID ?? (PGHARNESS_COPIES && 1);
  if (worker !== undefined) {
    use(worker, { command, option: '--test-concurrency' });
    await reset({ to: 'template' });
  } else {
    await lease({ command });
    // When nothing of the file is left to do. Who is killed before, gives it back by being gone.
    process.once('beforeExit', () => release().catch(() => {}));
  }
}

let running = [];

/** A hook for tests that are not part of another: what that one has written is what its subtests are about. */
const outermost = (hook) => async (test) => {
  // Not by an afterEach: none comes behind a test that skips itself.
  running = running.filter(({ signal }) => !signal.aborted);
  const others = running;
  running = [...others, test];
  if (others.length === 0) return hook();
  // Versions without fullName (before 20.16) cannot tell one that runs beside it from one within it.
  if (test.fullName !== undefined && !others.some(({ fullName }) => test.fullName.startsWith(`${fullName} > `))) {
    throw new PgHarnessError('tests of one file that run at once (`concurrency`) share its database: use pg-harness/node/file for them');
  }
};

/** Called once by a module that is given to `node --import`. */
function setUp(before) {
  if (runner) return;
  if (together && before !== 'test') {
    throw new PgHarnessError(`without a process for each file, resets come before each test: use pg-harness/node instead of pg-harness/node/${before}`);
  }
  pristine(before, {
    beforeEach: (hook) => beforeEach(outermost(hook), { timeout: PATIENCE }),
    afterAll: (hook) => after(hook, { timeout: PATIENCE }),
  });
}

export { setUp };
