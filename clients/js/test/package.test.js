// What is in the package: every door leads somewhere, and the edges refuse to work where they cannot.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('..', import.meta.url));
const { exports: doors, dependencies } = JSON.parse(readFileSync(`${folder}package.json`, 'utf8'));

test('every door leads to a file', () => {
  for (const [door, targets] of Object.entries(doors)) {
    for (const file of Object.values(targets)) assert.ok(existsSync(folder + file), `${door}: ${file}`);
  }
});

test('it depends on nothing', () => assert.equal(dependencies, undefined));

function run(...words) {
  const env = { PATH: process.env.PATH };
  return spawnSync(process.execPath, words, { cwd: folder, env, encoding: 'utf8' });
}

test('outside of a run node:test is told how to start', () => {
  const { status, stderr, stdout } = run('--import', './node.js', '-e', "console.log('ran')");
  assert.equal(status, 1);
  assert.match(stderr, /outside of pg-harness.*pg-harness run -n 4 -- node --import pg-harness\/node --test/);
  assert.equal(stdout, '');
});

test('outside of Jest its set-up file is refused', () => {
  assert.match(run('jest.cjs').stderr, /belongs into Jest's setupFilesAfterEnv/);
});
