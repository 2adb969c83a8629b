import type { PlaywrightTestArgs, PlaywrightTestOptions, PlaywrightWorkerArgs, PlaywrightWorkerOptions, TestType } from '@playwright/test';

/** For the beginning of a file's beforeAll, in the mode 'mark'. */
export function begin(): Promise<void>;
export { expect } from '@playwright/test';

export interface Pristine {
  /** Before what the worker's database becomes pristine: each 'test', each 'file', or back to a 'mark' after the file's beforeAll. */
  pristineBefore: 'test' | 'file' | 'mark';
  /** The worker's own database, pristine. */
  databaseUrl: string;
}

export const test: TestType<
  PlaywrightTestArgs & PlaywrightTestOptions & Pristine,
  PlaywrightWorkerArgs & PlaywrightWorkerOptions
>;
