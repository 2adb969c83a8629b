"""Prisma as its own guide sets it up: its migrations found and applied without it, four workers of Vitest apart."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

SCHEMA = """
generator client {
  provider = "prisma-client"
  output   = "../generated"
}

datasource db {
  provider = "postgresql"
}

enum Role {
  USER
  ADMIN
}

model User {
  id    Int    @id @default(autoincrement())
  email String @unique
  role  Role   @default(USER)
  posts Post[]
}

model Post {
  id       Int    @id @default(autoincrement())
  slug     String @unique
  author   User   @relation(fields: [authorId], references: [id])
  authorId Int
}
"""

# As `prisma migrate dev` writes them.
USERS = """
-- CreateEnum
CREATE TYPE "Role" AS ENUM ('USER', 'ADMIN');

-- CreateTable
CREATE TABLE "User" (
    "id" SERIAL NOT NULL,
    "email" TEXT NOT NULL,
    "role" "Role" NOT NULL DEFAULT 'USER',

    CONSTRAINT "User_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "User_email_key" ON "User"("email");
"""
POSTS = """
-- CreateTable
CREATE TABLE "Post" (
    "id" SERIAL NOT NULL,
    "slug" TEXT NOT NULL,
    "authorId" INTEGER NOT NULL,

    CONSTRAINT "Post_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "Post_slug_key" ON "Post"("slug");

-- AddForeignKey
ALTER TABLE "Post" ADD CONSTRAINT "Post_authorId_fkey" FOREIGN KEY ("authorId") REFERENCES "User"("id") ON DELETE RESTRICT ON UPDATE CASCADE;
"""

CONFIG = """
import { defineConfig, env } from 'prisma/config';
export default defineConfig({
  schema: 'prisma/schema.prisma', migrations: { path: 'prisma/migrations' }, datasource: { url: env('DATABASE_URL') },
});
"""

CLIENT = """
import { PrismaPg } from '@prisma/adapter-pg';
import { PrismaClient } from '../generated/client';
export const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL }) });
"""

SETUP = "process.env.DATABASE_URL = process.env[`DATABASE_URL_${process.env.VITEST_POOL_ID}`];\n"

VITEST = """
import { defineConfig } from 'vitest/config';
export default defineConfig({ test: {
  setupFiles: process.env.SHARED ? [] : ['test/setup.ts'], maxWorkers: Number(process.env.PGHARNESS_WORKERS),
  testTimeout: 30_000, hookTimeout: 30_000,
} });
"""

TEST = """
import { appendFileSync } from 'node:fs';
import { afterAll, beforeEach, expect, test } from 'vitest';
import { prisma } from '../src/db';

beforeEach(async () => { await prisma.post.deleteMany(); await prisma.user.deleteMany(); });
afterAll(() => prisma.$disconnect());

test.each([1, 2, 3])('the same slug as everybody %i', async () => {
  const [{ name }] = await prisma.$queryRaw<{ name: string }[]>`select current_database()::text as name`;
  appendFileSync('entered.txt', `${process.env.VITEST_POOL_ID} ${name}\\n`);
  await prisma.user.create({ data: { email: 'ada@example.org', role: 'ADMIN', posts: { create: { slug: 'hello' } } } });
  await new Promise((done) => setTimeout(done, 50));
  await prisma.$transaction(async (inner) => {
    expect(await inner.post.count()).toBe(1);
    await inner.post.update({ where: { slug: 'hello' }, data: { slug: 'hi' } });
  });
  const users = await prisma.user.findMany({ include: { posts: true } });
  expect(users.map((user) => [user.email, user.role, user.posts.map((post) => post.slug)]))
    .toEqual([['ada@example.org', 'ADMIN', ['hi']]]);
});
"""

FILES = 6
VITEST_RUN = ("node_modules/.bin/vitest", "run")


@pytest.fixture(scope="module")
def prisma(new_javascript: Callable[[str], Project]) -> Project:
    """The client is generated as a person would do it: `npx prisma generate` with a database to name."""
    project = new_javascript("prisma")
    files = {
        "prisma/schema.prisma": SCHEMA, "prisma/migrations/migration_lock.toml": 'provider = "postgresql"\n',
        "prisma/migrations/20260101000000_users/migration.sql": USERS,
        "prisma/migrations/20260102000000_posts/migration.sql": POSTS,
        "prisma.config.ts": CONFIG, "src/db.ts": CLIENT, "test/setup.ts": SETUP, "vitest.config.ts": VITEST,
        **{f"test/posts{number}.test.ts": TEST for number in range(FILES)},
    }  # fmt: skip
    for name, text in files.items():
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # Nothing is asked of the schema engine, and its binary is a download.
    project.environ["PRISMA_SCHEMA_ENGINE_BINARY"] = "/bin/true"
    project.ok("init")
    project.ok("run", "--", "node_modules/.bin/prisma", "generate")
    assert (project.root / "generated" / "client.ts").exists()
    return project


def entered(project: Project) -> dict[str, set[str]]:
    """Worker of Vitest → the databases that its tests saw."""
    path = project.root / "entered.txt"
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        worker, database = line.split()
        found.setdefault(worker, set()).add(database)
    path.unlink()
    return found


def assert_apart(found: dict[str, set[str]]) -> None:
    assert set(found) == {"1", "2", "3", "4"}
    assert all(len(databases) == 1 for databases in found.values()), found
    assert len(set.union(*found.values())) == 4, found


def test_its_migrations_are_found(prisma: Project) -> None:
    assert 'migrations = ["sql:prisma/migrations"]' in (prisma.root / "pg-harness.toml").read_text()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("pool", ["forks", "threads"])
def test_four_workers_of_vitest(prisma: Project, pool: str) -> None:
    done = prisma.run("run", "-n", "4", "--", *VITEST_RUN, f"--pool={pool}", CI="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * FILES} passed" in done.stdout
    assert "not isolated" not in done.stderr
    assert_apart(entered(prisma))


@pytest.mark.timeout(180)
def test_without_the_line_of_the_setup_it_says_what_is_wrong(prisma: Project) -> None:
    done = prisma.run("run", "-n", "4", "--", *VITEST_RUN, CI="true", SHARED="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(set.union(*entered(prisma).values())) == 1
    assert "only worker 1's database was used, of 4" in done.stderr
    assert "VITEST_POOL_ID" in done.stderr


@pytest.mark.timeout(180)
def test_databases_that_stay_for_a_watching_runner(prisma: Project) -> None:
    """`up`, then the variables of all of them in the shell from which the runner is started again and again."""
    prisma.ok("up", "-n", "4")
    script = prisma.ok("env") + "\nexec " + " ".join(VITEST_RUN)
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-c", script], cwd=prisma.root, env={**prisma.environ, "CI": "true"}, text=True, timeout=120,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert_apart(entered(prisma))


SHARD = """
const { test } = require('node:test');
const assert = require('node:assert');
const { Client } = require('pg');
test('the same slug as everybody', async () => {
    const client = new Client({ connectionString: process.env.DATABASE_URL });
    await client.connect();
    await client.query(`insert into "User" (email) values ('${__filename}')`);
    await client.query('delete from "User"; insert into "User" (email) values (\\'same\\')');
    await new Promise((done) => setTimeout(done, 100));
    assert.equal((await client.query('select * from "User"')).rowCount, 1);
    await client.end();
});
"""


@pytest.mark.timeout(120)
def test_a_copy_for_each_shard_of_a_runner_without_worker_numbers(prisma: Project) -> None:
    folder: Path = prisma.root / "shards"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.test.js").write_text(SHARD)
    shard = "exec node --test --test-concurrency=1 --test-shard=$PGHARNESS_COPY/$PGHARNESS_COPIES shards/*.test.js"
    done = prisma.run("run", "--copies", "4", "--", "sh", "-c", shard)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("# pass 2") == 4, done.stdout
