// ARTIFACTS=1: what a failed test left in its database is written down before the next test's reset.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { changes } from 'pg-harness/core';
import { beforeEach } from 'vitest';

beforeEach(({ task, onTestFailed }) => {
  onTestFailed(async () => {
    const { id: worker, databases } = await changes();
    // One line for each table: `Booking: 1 inserted`. Sequences have one as well.
    const lines = databases.default.map((line) => line.split(': '));
    const changed = lines.filter(([, what]) => what !== 'sequence moved').map(([table]) => table);
    const errors = task.result?.errors?.map(({ message }) => message);
    const left = { test: task.fullName, errors, worker, changes: Object.fromEntries(lines), rows: rows(worker, changed) };
    mkdirSync('artifacts', { recursive: true });
    writeFileSync(`artifacts/${task.fullName.replace(/[^\w.-]+/g, '-').slice(0, 200)}.json`, `${JSON.stringify(left, null, 2)}\n`);
  });
});

/** The first fifty rows of each table, seen from outside: the client's pool may be what is broken. */
function rows(worker: number, tables: string[]) {
  const each = tables.map((table) => {
    const name = table.split('.').map((part) => `"${part}"`).join('.');
    return `select '${table}' as name, (select json_agg(r) from (select * from ${name} limit 50) r) as rows`;
  });
  if (each.length === 0) return {};
  const query = `select json_object_agg(name, rows) from (${each.join(' union all ')}) t`;
  try {
    return JSON.parse(execFileSync('pg-harness', ['psql', String(worker), '--', '-XAtqc', query], { encoding: 'utf8', timeout: 30_000 }));
  } catch (error) {
    return String(error);
  }
}
