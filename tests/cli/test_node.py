"""Jest and Vitest side by side, with the pools, the clean-ups and the "unique" values that guides warn of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_cli import Project

MIGRATION = """
create table posts (id int generated always as identity primary key, slug text not null unique);
create table comments (id int generated always as identity primary key, post int not null references posts);
"""


@pytest.fixture
def javascript(new_javascript: Callable[[str], Project]) -> Project:
    """One each: Vitest takes Jest's files for its own."""
    project = new_javascript("javascript")
    project.migrate("010_posts.sql", MIGRATION)
    return project


JEST = """
const { MikroORM, EntitySchema } = require('@mikro-orm/postgresql');
const Post = new EntitySchema({ name: 'Post', tableName: 'posts',
    properties: { id: { type: 'number', primary: true, autoincrement: true }, slug: { type: 'string' } } });
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
let orm;
beforeAll(async () => {
    orm = await MikroORM.init({ clientUrl: process.env.DATABASE_URL, entities: [Post], pool: { min: 5, max: 10 }, allowGlobalContext: true });
});
afterAll(async () => { await orm.close(true); });
// The clean-ups that a guide gave up on: each as it was tried.
const cleanUps = [
    async (sql) => { await sql(`set session_replication_role = replica; delete from posts; delete from comments;
                                set session_replication_role = default; alter sequence posts_id_seq restart`); },
    async (sql) => { await sql('truncate posts, comments restart identity cascade'); },
];
for (const [n, cleanUp] of cleanUps.entries()) {
    for (let i = 0; i < 4; i++) {
        test(`post ${n} ${i}`, async () => {
            const connection = orm.em.getConnection();
            await cleanUp((text) => connection.execute(text));
            const em = orm.em.fork();
            em.persist(em.create('Post', { slug: 'hello-world' }));
            await em.flush();
            await wait(30);
            const found = await orm.em.fork().find('Post', {});
            expect(found.map((post) => [post.id, post.slug])).toEqual([[1, 'hello-world']]);
            await orm.em.transactional(async (inner) => {
                await inner.getConnection().execute('insert into comments (post) values (1)', [], 'run', inner.getTransactionContext());
            });
            const [{ count }] = await connection.execute('select count(*)::int as count from comments');
            expect(count).toBe(1);
        });
    }
}
"""

JEST_SETUP = """
if (!process.env.SHARED) process.env.DATABASE_URL = process.env[`DATABASE_URL_${process.env.JEST_WORKER_ID}`];
"""


def test_jest_and_mikro_orm(javascript: Project) -> None:
    for number in range(5):
        (javascript.root / f"posts{number}.test.js").write_text(JEST)
    (javascript.root / "setup.js").write_text(JEST_SETUP)
    (javascript.root / "package.json").write_text('{"jest": {"setupFiles": ["./setup.js"]}}')
    command = ("run", "-n", "4", "--", "node", "node_modules/jest/bin/jest.js", "--maxWorkers=4", "--ci")
    # session_replication_role is for superusers.
    done = javascript.run(*command, PGHARNESS_SUPERUSER="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests:       40 passed, 40 total" in done.stderr
    # The very same suite on one database is what the guide describes.
    done = javascript.run(*command, PGHARNESS_SUPERUSER="true", SHARED="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed" in done.stderr


VITEST = """
import pg from 'pg';
import { afterAll, beforeEach, expect, test } from 'vitest';
const url = process.env.SHARED ? process.env.DATABASE_URL : process.env[`DATABASE_URL_${process.env.VITEST_POOL_ID}`];
const pool = new pg.Pool({ connectionString: url, max: 20 });
afterAll(() => pool.end());
beforeEach(() => pool.query('truncate posts, comments restart identity cascade'));

test('all of the pool at once', async () => {
    const clients = await Promise.all(Array.from({ length: 20 }, () => pool.connect()));
    await Promise.all(clients.map((client) => client.query('select pg_sleep(0.3)')));
    clients.forEach((client) => client.release());
});

test.each([1, 2, 3])('the same slug as everybody %i', async () => {
    const { rows } = await pool.query("insert into posts (slug) values ('same') returning id");
    expect(rows[0].id).toBe(1);
    await pool.query('insert into comments (post) values (1)');
    await new Promise((done) => setTimeout(done, 30));
    expect((await pool.query('select count(*)::int from posts')).rows[0].count).toBe(1);
});

test('a schema for each worker, by the URL', async () => {
    const own = new pg.Client({ connectionString: `${url}?options=-c%20search_path%3Dtest_w` });
    await own.connect();
    await own.query('drop schema if exists test_w cascade; create schema test_w; create table things (id int)');
    await new Promise((done) => setTimeout(done, 30));
    const { rows } = await own.query("select table_schema from information_schema.tables where table_name = 'things'");
    expect(rows).toEqual([{ table_schema: 'test_w' }]);
    await own.end();
});
"""


def test_vitest_and_pools(javascript: Project) -> None:
    for number in range(8):
        (javascript.root / f"posts{number}.test.mjs").write_text(VITEST)
    command = ("run", "-n", "8", "--", "node", "node_modules/vitest/vitest.mjs", "run", "--maxWorkers=8")
    done = javascript.run(*command, CI="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 passed" in done.stdout
    done = javascript.run(*command, CI="true", SHARED="1")
    assert done.returncode == 1, done.stdout + done.stderr
