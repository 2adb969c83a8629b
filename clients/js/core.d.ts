export interface ResetReport {
  id: number;
  strategy: 'nothing' | 'rewind' | 'restore' | 'clone';
  milliseconds: number;
  tables: string[];
  rows: number;
  /** Sessions that were ended because they held a transaction open. */
  ended: string[];
  /** Why it was a fresh clone. */
  reason: string;
}

export interface Changes {
  id: number;
  changed: boolean;
  /** Name of the database → one line for each table that differs. */
  databases: Record<string, string[]>;
  /** Name of the database → the same for programs. */
  details: Record<string, DatabaseChanges>;
}

export interface DatabaseChanges {
  tables: Record<string, TableChanges>;
  sequences: string[];
  /** What differs in the schema, one line each. */
  schema: string[];
  /** System catalogs were written beyond that. */
  other: boolean;
}

export interface TableChanges {
  inserted: number;
  updated: number;
  deleted: number;
  rewritten: boolean;
  /** It writes no log, so it may have changed. */
  unlogged: boolean;
}

export interface Lease {
  id: number;
  url: string;
  env: Record<string, string>;
}

export class PgHarnessError extends Error {
  /** HTTP status of the answer; 0 where there was none. */
  status: number;
  problem: { title?: string; status?: number; detail?: string; [more: string]: unknown };
}

/** How many databases this run has; throws outside of a run. */
export function workers(command?: string): number;
/** Every variable NAME becomes NAME_n, in `process.env`; from here on, that database is this process's own. */
export function use(worker: number | string, told?: { command?: string; option?: string }): number;
/** A pristine database that is nobody's; its variables are set in `process.env`. Given back with `release`, or when the process is gone. */
export function lease(wanted?: { worker?: string; pid?: number; wait?: number; command?: string }): Promise<Lease>;
export function release(id?: number | string): Promise<void>;
/** Back to the last mark, else to what the migrations made; `to`: a mark, or 'template', which forgets all marks. */
export function reset(options?: { to?: string }): Promise<ResetReport>;
/** The present state is what reset comes back to; marks stack. */
export function mark(): Promise<string>;
/** Forget a mark and those above it. */
export function unmark(mark: string): Promise<void>;
/** What differs from the pristine state, or from the last mark. */
export function changes(): Promise<Changes>;
/** The hooks of a runner for one of the three modes. */
export function pristine(
  before: 'test' | 'file' | 'mark',
  runner: {
    beforeEach: (hook: () => Promise<unknown>) => void;
    afterAll: (hook: () => Promise<unknown>) => void;
  },
): void;
/** Milliseconds after which a request, or a hook, is given up. */
export const PATIENCE: number;
