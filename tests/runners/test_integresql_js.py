"""IntegreSQL's own client in JavaScript, unchanged, against ``serve --integresql``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from fix_examples import Javascript

SCRIPT = """
import { createRequire } from 'node:module';
const require = createRequire(import.meta.url);
const { IntegreSQLClient } = require('@devoxa/integresql-client');
const { Client } = require('pg');

const client = new IntegreSQLClient({ url: process.env.INTEGRESQL });
const on = async (config, act) => {
  const connection = new Client({ connectionString: client.databaseConfigToConnectionUrl(config) });
  await connection.connect();
  try { return await act(connection); } finally { await connection.end(); }
};
const names = (config) => on(config, async (c) => (await c.query('select name from users order by id')).rows.map(({ name }) => name));

const hash = await client.hashFiles(['./*.mjs']);
let filled = 0;
const fill = (config) => { filled += 1; return on(config, (c) => c.query("create table users (id serial, name text); insert into users (name) values ('seed')")); };
// Two workers begin at the same time: one fills it.
await Promise.all([client.initializeTemplate(hash, fill), new IntegreSQLClient({ url: process.env.INTEGRESQL }).initializeTemplate(hash, fill)]);

const seen = [];
for (let turn = 0; turn < 8; turn += 1) {
  // None is given back: each is left, which is how its users do it.
  const config = await client.getTestDatabase(hash);
  seen.push([config.database, await names(config)]);
  await on(config, (c) => c.query("insert into users (name) values ('dirt'); drop table if exists other; create table other ()"));
}
const { id, database } = await client.api.getTestDatabase(hash);
await client.api.reuseTestDatabase(hash, id);
await client.api.recreateTestDatabase(hash, id);
let failed;
await client.initializeTemplate('fails', async () => { throw new Error('migration'); }).catch((error) => { failed = error.message; });
const unknown = await client.getTestDatabase('fails').catch((error) => error.responseStatus);
await client.api.discardTemplate(hash);
console.log(JSON.stringify({ filled, seen, failed, unknown, hash: database.templateHash === hash }));
"""


@pytest.fixture
def served(javascript: Callable[..., Javascript]) -> Iterator[tuple[Javascript, str]]:
    project = javascript("integresql", "@devoxa/integresql-client", "pg")
    done = subprocess.run(
        project.command("serve", "--detach", "--integresql", "-n", "3", "--format", "json"),
        cwd=project.root, env=project.environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    yield project, json.loads(done.stdout)["PGHARNESS_CONTROL_URL"]
    project.ok("serve", "--stop")


def test_their_client_in_javascript(served: tuple[Javascript, str]) -> None:
    project, url = served
    project.write({"look.mjs": SCRIPT})
    done = project.call("node", "look.mjs", INTEGRESQL=url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["filled"] == 1
    assert [names for _, names in told["seen"]] == [["seed"]] * 8
    assert len({name for name, _ in told["seen"]}) <= 3
    assert told["failed"] == "migration"
    assert told["unknown"] == 404
    assert told["hash"] is True
