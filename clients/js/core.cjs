// The databases of a living `pg-harness run`: which one is this process's own, and how it becomes pristine again.
const http = require('node:http');

// Taken before anybody's test replaces them (nock, msw, fake timers), and kept where one process loads this file anew for each of its test
// files, as Jest does.
const KEPT = Symbol.for('pg-harness.http');
if (!http[KEPT]) Object.defineProperty(http, KEPT, { value: { Agent: http.Agent, request: http.request } });
const { Agent, request } = http[KEPT];
const agent = new Agent({ keepAlive: true });
/** Milliseconds: longer than a runner's own limit for hooks, since a reset may be a fresh clone on a busy machine. */
const PATIENCE = 120_000;

/** What went wrong, in the words of `pg-harness`; `problem` is the whole answer where there was one. */
class PgHarnessError extends Error {
  name = 'PgHarnessError';
  constructor(message, problem = {}) {
    super(message);
    this.status = problem.status ?? 0;
    this.problem = problem;
  }
}

/** How many databases the run has. Outside of one it throws: tests must never meet another database by accident. */
function workers(command = 'npm test') {
  const { PGHARNESS_CONTROL_URL, PGHARNESS_CONTROL_TOKEN, PGHARNESS_WORKERS } = process.env;
  if (!PGHARNESS_CONTROL_URL || !PGHARNESS_CONTROL_TOKEN) {
    throw new PgHarnessError(
      `these tests have no database: they were started outside of pg-harness. Run \`pg-harness run -n 4 -- ${command}\``,
    );
  }
  return Number(PGHARNESS_WORKERS || 1);
}

/** Every variable NAME becomes worker n's, NAME_n; from here on reset, mark and changes are about that database. */
function use(worker, { command, option = '' } = {}) {
  const count = workers(command);
  const number = Number(worker);
  if (worker === '' || !Number.isInteger(number) || number < 1 || number > count) {
    throw new PgHarnessError(
      `worker ${JSON.stringify(worker) ?? 'undefined'} has no database: this run has ${count}, numbered from 1. ` +
        `Give it as many as there are workers (\`pg-harness run -n N\`)${option && `, or fewer workers (${option})`}`,
    );
  }
  for (const numbered of Object.keys(process.env)) {
    const name = numbered.endsWith(`_${number}`) ? numbered.slice(0, -`_${number}`.length) : '';
    // A variable of yours that happens to end with a number is not one of ours: those are there for all workers.
    const all = Array.from({ length: count }, (_, i) => `${name}_${i + 1}`);
    if (name in process.env && all.every((other) => other in process.env)) process.env[name] = process.env[numbered];
  }
  // A copy of `run --copies` has one database, whose number is another than 1.
  if (!process.env.PGHARNESS_COPIES) process.env.PGHARNESS_LEASE = String(number);
  return number;
}

/** A pristine database that is nobody's, where a runner has no numbers for its workers; waits until one is free. */
async function lease({ worker, pid = worker === undefined ? process.pid : undefined, wait = 300, command } = {}) {
  workers(command);
  const given = await call('POST', '/v1/lease', { worker, pid, wait }, (wait + 60) * 1000);
  Object.assign(process.env, given.env);
  process.env.PGHARNESS_LEASE = String(given.id);
  return given;
}

/** Back to the last mark, else to what the migrations made; `to`: a mark, or 'template', which forgets all marks. */
function reset({ to } = {}) {
  return call('POST', `/v1/reset/${own()}${to === undefined ? '' : `?to=${encodeURIComponent(to)}`}`);
}

/** The present state is what reset comes back to; marks stack. */
async function mark() {
  return (await call('POST', `/v1/mark/${own()}`)).mark;
}

/** Forget a mark, and those above it. The rows stay until the next reset. */
async function unmark(mark) {
  await call('DELETE', `/v1/mark/${own()}/${encodeURIComponent(mark)}`);
}

/** What differs from the pristine state, or from the last mark. */
function changes() {
  return call('GET', `/v1/changes/${own()}`);
}

/** Give a leased database back. */
async function release(id = own()) {
  await call('POST', `/v1/release/${id}`);
}

/** The hooks of a runner for one of the three modes: pristine before each `test`, before each `file`, or back to a `mark` that is set
 * after the file's own beforeAll. The file has begun with `reset({ to: 'template' })`. */
function pristine(before, { beforeEach, afterAll }) {
  let kept;
  if (before === 'test') beforeEach(() => reset());
  else if (before === 'mark') {
    beforeEach(async () => {
      if (kept === undefined) kept = await mark();
      else await reset();
    });
    afterAll(async () => {
      if (kept !== undefined) await unmark(kept);
    });
  } else if (before !== 'file') throw new PgHarnessError(`pristine before what? 'test', 'file' or 'mark', not ${JSON.stringify(before)}`);
}

function own() {
  workers();
  const id = process.env.PGHARNESS_LEASE;
  if (!id) throw new PgHarnessError('this process has no database yet: call use(number of the worker) or lease() first');
  return id;
}

function call(method, path, body, patience = PATIENCE, again = true) {
  const { PGHARNESS_CONTROL_URL: url, PGHARNESS_CONTROL_TOKEN: token } = process.env;
  const text = body === undefined ? '' : JSON.stringify(body);
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
  return new Promise((resolve, reject) => {
    const sent = request(url + path, { method, agent, headers }, (response) => {
      let answer = '';
      response.setEncoding('utf8');
      response.on('error', reject);
      response.on('data', (part) => (answer += part));
      response.on('end', () => {
        const read = parsed(answer);
        if (response.statusCode < 300) return resolve(read);
        const problem = { status: response.statusCode, ...read };
        const said = problem.detail || problem.title || answer.slice(0, 300) || 'no reason was given';
        reject(new PgHarnessError(`pg-harness: ${said} (${method} ${path}: ${response.statusCode})${heldBy(problem)}`, problem));
      });
    });
    sent.setTimeout(patience, () => sent.destroy(new Error(`no answer in ${patience / 1000} s`)));
    sent.on('error', (error) => {
      // It was closed while it lay idle: nothing has been asked yet.
      if (again && sent.reusedSocket && error.code === 'ECONNRESET') return resolve(call(method, path, body, patience, false));
      reject(new PgHarnessError(`pg-harness run does not answer at ${url}: ${error.message || error.code}. Has it ended?`));
    });
    sent.end(text);
  });
}

function heldBy({ holders = [] }) {
  return holders.map(({ id, worker, pid, seconds }) => `\n  ${id}: ${worker || `process ${pid}`}, for ${Math.round(seconds)} s`).join('');
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

module.exports = { PATIENCE, PgHarnessError, changes, lease, mark, pristine, release, reset, unmark, use, workers };
