// A guest book: a page with a form, and the same as JSON.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';
import pg from 'pg';

const ENTRIES = 'select e.id::int, g.name, e.text from entries e join guests g on g.id = e.guest order by e.id';
const GUEST =
  'insert into guests (name, email) values ($1, $2) on conflict (email) do update set name = excluded.name returning id';

/** Serves it on a free port (or `port`): its address, and what ends it. */
export async function start({ connectionString = process.env.DATABASE_URL, port = 0 } = {}) {
  const pool = new pg.Pool({ connectionString, max: 5 });
  const server = createServer((request, response) => {
    answer(pool, request, response).catch((error) => {
      const status = error.code?.startsWith('23') ? 422 : 500;
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ error: error.message }));
    });
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  const close = async () => {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
    await pool.end();
  };
  return { url: `http://127.0.0.1:${server.address().port}`, close };
}

async function answer(pool, request, response) {
  const { pathname } = new URL(request.url, 'http://localhost');
  const json = (status, body) =>
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  if (pathname === '/entries' && request.method === 'GET') {
    json(200, (await pool.query(ENTRIES)).rows);
  } else if (pathname === '/entries' && request.method === 'POST') {
    const body = await read(request);
    const form = request.headers['content-type'] === 'application/x-www-form-urlencoded';
    const entry = await write(pool, form ? Object.fromEntries(new URLSearchParams(body)) : JSON.parse(body));
    if (form) response.writeHead(303, { location: '/' }).end();
    else json(201, entry);
  } else if (pathname === '/' && request.method === 'GET') {
    response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(page((await pool.query(ENTRIES)).rows));
  } else json(404, { error: 'not found' });
}

async function write(pool, { name, email, text }) {
  const client = await pool.connect();
  try {
    await client.query('begin');
    const guest = (await client.query(GUEST, [name, email])).rows[0].id;
    const { rows } = await client.query('insert into entries (guest, text) values ($1, $2) returning id::int', [guest, text]);
    await client.query('commit');
    return rows[0];
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
}

async function read(request) {
  let body = '';
  for await (const part of request.setEncoding('utf8')) body += part;
  return body;
}

const escape = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

const page = (entries) => `<!doctype html>
<title>Guest book</title>
<h1>Guest book</h1>
<ul>${entries.map(({ name, text }) => `<li><b>${escape(name)}</b>: ${escape(text)}</li>`).join('')}</ul>
<form method="post" action="/entries">
  <label>Name <input name="name" required></label>
  <label>Address <input name="email" type="email" required></label>
  <label>Text <input name="text" required></label>
  <button>Write</button>
</form>`;

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log((await start({ port: Number(process.env.PORT ?? 3000) })).url);
}
