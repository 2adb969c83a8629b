import { PATIENCE, PgHarnessError, pristine, reset, use } from '../core.js';

const { JEST_WORKER_ID } = process.env;
if (JEST_WORKER_ID === undefined || typeof beforeEach !== 'function') {
  throw new PgHarnessError("pg-harness/jest belongs into Jest's setupFilesAfterEnv, and Jest must run it");
}
use(JEST_WORKER_ID, { command: 'npx jest --maxWorkers=4', option: '--maxWorkers' });

/** Called once by a set-up file, which Jest runs before each test file. */
function setUp(before) {
  beforeAll(() => reset({ to: 'template' }), PATIENCE);
  pristine(before, {
    beforeEach: (hook) => beforeEach(hook, PATIENCE),
    afterAll: (hook) => afterAll(hook, PATIENCE),
  });
}

export { setUp };
