"""A server that crashes at random moments: what a lease does next gives the template's state, as it was when it was built.

One process of the server is killed with SIGKILL (of the application, of ours, or one of the server's own), or the whole server
is stopped at once and started again where its files are ours. Either way it recovers, which empties every unlogged table:
also those of the template. A reset that comes later must not raise, and one that is hit in the middle may do so once.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from diff_further import (
    ENOUGH,
    FURTHER,
    ORDERED,
    PER_SCHEMA,
    SEED,
    TIMEOUT,
    deterministic,
    enlarge,
    fail,
    schemas,
)
from diff_schemas import Schema
from diff_schemas import generate as generate_schema
from diff_workloads import CONNECTIONS, DDL, OPERATIONS, Maker, some_of
from fix_reset_picture import Picture, difference
from fix_reset_servers import PATIENCE, VERSIONS, Server, binaries, running
from test_differential import Runner

from harness.config.load import load
from harness.databases.lease import Lease
from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.postgres.session import Session
from harness.runs.run import Run

KINDS = [kind for kind in OPERATIONS if kind not in (*DDL, "advisory", "open transaction", "open savepoint")]
"""What waits for its time to be up takes long, and a crash ends it anyway."""

STAGES = ("before-look", "looked", "before-lock", "locked", "before-commit", "committed")
CLONE_EVERY = 5

UNLOGGED = """
; create unlogged table fleeting (id serial primary key, v text, n integer unique)
; insert into fleeting (v, n) select 'f' || i, i from generate_series(1, 40) i
; insert into fleeting (v) select string_agg(md5(i::text), '') from generate_series(1, 300) i
"""


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda v: f"pg{v}")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may hurt."""
    with running(request.param) as server:
        with server.session() as session:
            # As on servers of ours: else the rename of a lease's database is undone by the crash.
            session.execute("alter role postgres set synchronous_commit = on")
        try:
            yield server
        finally:
            if server.data is not None:
                _control(server, "stop")


def _control(server: Server, what: str) -> None:
    """Stop it at once, or restart it so."""
    folder = binaries(server.version)
    assert folder is not None
    assert server.data is not None
    user = "postgres" if os.geteuid() == 0 else None
    with open(server.data / "restarted.log", "ab") as log:
        subprocess.run(
            [folder / "pg_ctl", "-D", server.data, "-w", "-s", "-m", "immediate", what],
            user=user, cwd="/", stdout=log, stderr=log, check=what == "restart", timeout=60,
        )  # fmt: skip


@dataclass
class Leased:
    """A lease in the place of a bench."""

    server: Server
    lease: Lease

    @property
    def name(self) -> str:
        return self.lease.dsn.database

    def app(self, **settings: str) -> Session:
        return Session.connect(self.lease.dsn, application_name="app", settings=settings)

    def superuser(self) -> Session:
        return Session.connect(self.server.dsn(self.name), application_name="app")


class Crashes(Runner):
    """A runner whose database is a real lease, on a server that crashes."""

    def __init__(self, server: Server, schema: Schema, folder: Path, *, unlogged: bool = True) -> None:
        enlarge(deterministic(schema), weight=1)
        # A template that a crash has emptied is built again each time, which takes longer than all the rest.
        schema.sql = schema.sql + UNLOGGED if unlogged else schema.sql.replace("create unlogged", "create")
        self.server, self.schema = server, schema
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.sessions = [None] * CONNECTIONS
        self.done: Counter[str] = Counter()
        self.strategies: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        (folder / "db").mkdir(parents=True)
        (folder / "db" / "1.sql").write_text(schema.sql)
        (folder / "pg-harness.toml").write_text(
            'migrations = ["sql:db"]\nfresh = "reset"\nreset_timeout = "0.2s"\n'
        )
        environ = {
            **os.environ, "PGHARNESS_SERVER_URL": server.dsn().url, "PGHARNESS_BACKEND": "external",
            # Other tests have made databases there.
            "PGHARNESS_ALLOW_FOREIGN": "1",
            "PGHARNESS_STATE_DIR": str(folder / "state"), "PGHARNESS_CACHE_DIR": str(folder / "cache"),
        }  # fmt: skip
        self.harness = Run.open_with(load(environ, start=folder), environ)
        self.bench = Leased(server, self.harness.lease())  # type: ignore[assignment]
        with self.bench.superuser() as session:
            self.picture = Picture(session, ordered=ORDERED)
            self.wanted = self.picture.take(session, catalogs=False)
        with server.session() as session:
            # What recovery has to read begins here.
            session.execute("checkpoint")

    @property
    def lease(self) -> Lease:
        found: Leased = self.bench  # type: ignore[assignment]
        return found.lease

    # --- crashes -----------------------------------------------------------------------------------

    def crash(self, rng: random.Random, *, wait: bool) -> None:
        """The server crashes now; with ``wait`` it has recovered before this returns."""
        with self.server.session() as watching:
            if self.server.data is not None and rng.random() < 0.2:
                self.story.append("-- the server is stopped at once, and started")
                _control(self.server, "restart")
            else:
                self._kill(rng, watching)
            deadline = time.monotonic() + PATIENCE
            again = time.monotonic() + 2
            # Not before: a reset that ends in between would be right, and its database empty a moment later.
            while not watching.closed:
                assert time.monotonic() < deadline, "the server goes on"
                if time.monotonic() > again:
                    # The chosen one had logged out by itself.
                    again += 2
                    self._kill(rng, watching)
                with suppress(ServerLost, ServerRefused):
                    watching.value("select 1")
        self.counts["crashes"] += 1
        if wait:
            self.alive()

    def _kill(self, rng: random.Random, watching: Session) -> None:
        found = watching.rows(
            "select pid, backend_type, application_name from pg_stat_activity where pid <> pg_backend_pid() "
            "and backend_type <> 'parallel worker' order by backend_type, application_name, pid"
        )
        pid, kind, name = rng.choice(found)
        self.story.append(f"-- SIGKILL to a {kind} {name}")
        # By the server's own hand: it may be in a container.
        with suppress(ServerLost, ServerRefused):
            watching.execute(f"copy (select) to program 'kill -9 {pid}'")

    def alive(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.server.session().close()
                return
            except (ServerLost, ServerRefused):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    @contextmanager
    def crash_in_the_middle(self, rng: random.Random) -> Iterator[None]:
        """A crash at a stage of the reset, where it comes to that stage."""
        engine = self.lease._resets["default"]._engine
        stage = rng.choice(STAGES)
        if engine is None:
            yield
            return

        def reached(name: str) -> None:
            if name == stage:
                engine._stage = lambda name: None
                self.story.append(f"-- at stage {stage}")
                self.counts["in the middle"] += 1
                self.crash(rng, wait=rng.random() < 0.5)

        engine._stage = reached
        try:
            yield
        finally:
            engine._stage = lambda name: None

    # --- rounds ------------------------------------------------------------------------------------

    def round(self, seed: int) -> list[str]:
        """Writes and a crash in any order, and then a reset."""
        rng = random.Random(seed)
        self.story.append(f"-- seed {seed}")
        maker = Maker(rng, self.schema)
        when = rng.choice(
            [
                "before the writes",
                "after the writes",
                "after the writes",
                "in the middle",
                "with nobody in it",
            ]
        )
        if when == "in the middle":
            # An engine is opened when it is first needed.
            with suppress(HarnessError):
                self.lease.changes()
        if when == "before the writes":
            self.crash(rng, wait=True)
        if when != "with nobody in it":
            for operation in some_of(KINDS, rng, maker, rng.randint(1, 4)):
                with suppress(HarnessError):
                    self.perform(operation)
                self.story.append(str(operation))
        if when in ("after the writes", "with nobody in it"):
            self.crash(rng, wait=rng.random() < 0.5)
        if when == "in the middle":
            with self.crash_in_the_middle(rng):
                try:
                    self._reset()
                except HarnessError as error:
                    self.story.append(f"-- reset in the middle of which it crashed: {error}")
            self.alive()
        try:
            self._reset()
        except HarnessError as error:
            return [f"the reset raised {type(error).__name__}: {error}"]
        found = self._differences(self.bench.name)
        if not found and seed % CLONE_EVERY == 0:
            with self.harness.lease(f"other{seed}", watch=False) as other:
                found = [f"another lease: {line}" for line in self._differences(other.dsn.database)]
        return found

    def _reset(self) -> None:
        report = self.lease.reset()
        self.strategies[report.strategy] += 1
        self.reasons[report.reason[:80]] += 1
        self.story.append(f"-- {report}")

    def _differences(self, database: str) -> list[str]:
        self.leave_transactions()
        with self.server.session(database) as session:
            return difference(self.picture.take(session, catalogs=False), self.wanted)

    def close(self) -> None:
        for session in self.sessions:
            if session is not None:
                session.close()
        self.alive()
        with suppress(HarnessError):
            self.harness.close()


def search(runner: Crashes, first: int, seeds: range) -> None:
    """Crash once for each seed, and fail with all that was done since the template was built."""
    for seed in seeds:
        if differences := runner.round(seed):
            fail(runner.server.version, first, seed, differences, runner.story)


@pytest.mark.timeout(TIMEOUT)
def test_a_crash_at_any_moment_leaves_nothing_wrong(own_server: Server, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    strategies: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for first, seeds in schemas():
        unlogged = first // PER_SCHEMA % 4 == 0
        runner = Crashes(own_server, generate_schema(first), tmp_path / str(first), unlogged=unlogged)
        try:
            search(runner, first, seeds)
            counts += runner.counts
            strategies += runner.strategies
            reasons += runner.reasons
        finally:
            runner.close()
    print(
        f"\nPostgreSQL {own_server.version}: {FURTHER} rounds from seed {SEED}, {dict(counts)}, {dict(strategies)}, {dict(reasons)}"
    )
    if FURTHER < ENOUGH:
        return
    assert counts["crashes"] >= FURTHER / 2
    assert counts["in the middle"]
