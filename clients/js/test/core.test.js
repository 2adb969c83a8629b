// What the core asks of a server, and what it does to the environment. The server here only writes down what it is asked.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import { createRequire } from 'node:module';
import { after, beforeEach, test } from 'node:test';
import * as core from '../core.js';

const { changes, lease, mark, release, reset, unmark, use, workers } = core;

let asked = [];
let answer = { status: 200, body: {} };
let connections = 0;
const server = http.createServer(async (request, response) => {
  let body = '';
  for await (const part of request) body += part;
  asked.push([request.method, request.url, request.headers.authorization, body]);
  response.writeHead(answer.status, { 'content-type': 'application/json' });
  response.end(answer.text ?? JSON.stringify(answer.body));
});
server.on('connection', () => connections++);
server.listen(0, '127.0.0.1');
await once(server, 'listening');
after(() => (server.closeAllConnections(), server.close()));

const outside = { ...process.env };

function environment(values) {
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, outside, values);
}

const RUN = {
  PGHARNESS_RUN: '0123456789abcdef', PGHARNESS_WORKERS: '2', PGHARNESS_CONTROL_TOKEN: 'secret-token',
  PGHARNESS_CONTROL_URL: `http://127.0.0.1:${server.address().port}`,
  DATABASE_URL: 'postgresql://one', DATABASE_URL_1: 'postgresql://one', DATABASE_URL_2: 'postgresql://two',
  PGDATABASE: 'one', PGDATABASE_1: 'one', PGDATABASE_2: 'two', OWN: '1', OWN_1: '1', OWN_2: '2',
};

beforeEach(() => {
  environment(RUN);
  asked = [];
  answer = { status: 200, body: {} };
});

test('every variable becomes the worker\'s own', () => {
  assert.equal(use('2'), 2);
  const { DATABASE_URL, PGDATABASE, OWN, PGHARNESS_LEASE } = process.env;
  assert.deepEqual({ DATABASE_URL, PGDATABASE, OWN, PGHARNESS_LEASE }, {
    DATABASE_URL: 'postgresql://two', PGDATABASE: 'two', OWN: '2', PGHARNESS_LEASE: '2',
  });
});

test('a second time changes nothing, and another worker is another', () => {
  use(2);
  use(2);
  assert.equal(process.env.DATABASE_URL, 'postgresql://two');
  use(1);
  assert.equal(process.env.DATABASE_URL, 'postgresql://one');
});

test('what only looks numbered stays', () => {
  Object.assign(process.env, { API: 'mine', API_2: 'of somebody else', NEW_1: 'a', NEW_2: 'b' });
  use(2);
  assert.equal(process.env.API, 'mine');
  assert.equal('NEW' in process.env, false);
});

for (const worker of ['3', '0', '-1', '1.5', '', 'gw1', undefined, null, 'undefined']) {
  test(`there is no worker ${JSON.stringify(worker)}`, () => {
    assert.throws(() => use(worker, { option: 'maxWorkers' }), (error) => {
      assert.match(error.message, /this run has 2, numbered from 1.*pg-harness run -n N.*maxWorkers/);
      return error instanceof core.PgHarnessError;
    });
    assert.equal(process.env.DATABASE_URL, 'postgresql://one');
  });
}

for (const name of ['PGHARNESS_CONTROL_URL', 'PGHARNESS_CONTROL_TOKEN']) {
  test(`without ${name} everything throws, and says how to start`, async () => {
    delete process.env[name];
    const expected = /outside of pg-harness.*`pg-harness run -n 4 -- npx vitest run`/;
    assert.throws(() => use(1, { command: 'npx vitest run' }), expected);
    await assert.rejects(lease({ command: 'npx vitest run' }), expected);
    assert.throws(() => workers(), /outside of pg-harness/);
    process.env.PGHARNESS_LEASE = '1';
    for (const act of [reset, mark, () => unmark('1'), changes, () => release()]) {
      await assert.rejects(async () => act(), /outside of pg-harness/);
    }
    assert.deepEqual(asked, []);
    assert.notEqual(process.env.DATABASE_URL, 'undefined');
  });
}

test('no database before one is used', async () => {
  await assert.rejects(async () => reset(), /has no database yet: call use/);
});

test('the requests', async () => {
  use(2);
  answer.body = { id: 2, mark: 'a b' };
  await reset();
  await reset({ to: 'template' });
  assert.equal(await mark(), 'a b');
  await unmark('a b');
  await changes();
  await release();
  assert.deepEqual(asked.map(([method, url]) => `${method} ${url}`), [
    'POST /v1/reset/2', 'POST /v1/reset/2?to=template', 'POST /v1/mark/2', 'DELETE /v1/mark/2/a%20b', 'GET /v1/changes/2',
    'POST /v1/release/2',
  ]);
  assert.deepEqual([...new Set(asked.map(([, , token]) => token))], ['Bearer secret-token']);
});

test('one connection for many requests', async () => {
  use(1);
  await reset();
  const before = connections;
  for (let i = 0; i < 20; i++) await reset();
  assert.equal(connections, before);
});

test('a connection that was closed while it lay idle', async () => {
  use(1);
  for (let i = 0; i < 5; i++) {
    await reset();
    server.closeIdleConnections();
  }
  assert.equal(asked.length, 5);
});

test('the answer\'s own words', async () => {
  use(1);
  answer = { status: 409, body: { title: 'Conflict', status: 409, detail: 'the schema was changed: no mark can be set' } };
  await assert.rejects(mark(), (error) => {
    assert.match(error.message, /the schema was changed: no mark can be set/);
    assert.equal(error.status, 409);
    assert.equal(error.problem.title, 'Conflict');
    assert.doesNotMatch(error.message + JSON.stringify(error), /secret-token/);
    return true;
  });
  answer = { status: 502, text: '<html>a proxy</html>' };
  await assert.rejects(reset(), /a proxy.*502/);
});

test('who has the databases', async () => {
  answer = { status: 503, body: { detail: 'all 2 databases are leased', holders: [{ id: 1, worker: '', pid: 77, seconds: 3.2 }, { id: 2, worker: 'w', pid: null, seconds: 9 }] } };
  await assert.rejects(lease({ wait: 0 }), /all 2 databases are leased.*\n {2}1: process 77, for 3 s\n {2}2: w, for 9 s/);
});

test('a lease becomes the process\'s own', async () => {
  answer.body = { id: 7, url: 'postgresql://seven', env: { DATABASE_URL: 'postgresql://seven', OWN: '7' } };
  await lease();
  assert.deepEqual(JSON.parse(asked[0][3]), { pid: process.pid, wait: 300 });
  assert.equal(process.env.DATABASE_URL, 'postgresql://seven');
  assert.equal(process.env.OWN, '7');
  await reset();
  assert.equal(asked[1][1], '/v1/reset/7');
  await lease({ worker: 'mine' });
  assert.deepEqual(JSON.parse(asked[2][3]), { worker: 'mine', wait: 300 });
});

test('a copy keeps its lease, whatever number its worker has', async () => {
  Object.assign(process.env, { PGHARNESS_WORKERS: '1', PGHARNESS_COPIES: '4', PGHARNESS_LEASE: '3' });
  use(1);
  await reset();
  assert.equal(asked[0][1], '/v1/reset/3');
  assert.throws(() => use(2), /this run has 1/);
});

test('a run that has ended', async () => {
  const gone = http.createServer().listen(0, '127.0.0.1');
  await once(gone, 'listening');
  process.env.PGHARNESS_CONTROL_URL = `http://127.0.0.1:${gone.address().port}`;
  gone.close();
  await once(gone, 'close');
  use(1);
  await assert.rejects(reset(), /does not answer at http:\/\/127\.0\.0\.1:\d+: .*ECONNREFUSED.*Has it ended\?/);
});

test('CommonJS has the same', () => {
  assert.deepEqual(Object.keys(createRequire(import.meta.url)('../core.cjs')).sort(), Object.keys(core).sort());
});
