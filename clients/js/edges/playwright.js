import { expect, test as base } from '@playwright/test';
import { PATIENCE, PgHarnessError, mark, reset, use } from '../core.js';

const { TEST_PARALLEL_INDEX } = process.env;
// Counts from 0, and stays when a worker is started again; it is not there in the process that only starts the workers.
if (TEST_PARALLEL_INDEX !== undefined) {
  use(Number(TEST_PARALLEL_INDEX) + 1, { command: 'npx playwright test', option: 'workers in playwright.config' });
}

let file;
let begun = false;

/** For the beginning of a file's beforeAll, in the mode 'mark': Playwright has no way to come before it. */
async function begin() {
  await reset({ to: 'template' });
  begun = true;
}

/** Playwright's `test`, with the worker's own database, pristine before each 'test' or 'file', or back to a 'mark'. */
const test = base.extend({
  pristineBefore: ['test', { option: true }],
  databaseUrl: [
    async ({ pristineBefore }, run, { file: present }) => {
      const first = file !== present;
      file = present;
      if (pristineBefore === 'test') await reset();
      else if (pristineBefore === 'file') first && (await reset({ to: 'template' }));
      else if (pristineBefore !== 'mark') {
        throw new PgHarnessError(`pristine before what? 'test', 'file' or 'mark', not ${JSON.stringify(pristineBefore)}`);
      } else if (!first) await reset();
      else if (begun) await mark();
      else throw new PgHarnessError("pristineBefore: 'mark' needs `await begin()` as the first line of the file's beforeAll");
      begun = false;
      await run(process.env.DATABASE_URL);
    },
    { auto: true, timeout: PATIENCE },
  ],
});

export { begin, expect, test };
