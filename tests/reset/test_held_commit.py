"""A transaction that stands still in the middle of its COMMIT: its writes count, and caches of other sessions do not know it yet.

A snapshot sees it from the moment at which it leaves the list of those that run. Only later it tells other sessions' caches, then
it gives up its locks, then it unlinks files that it dropped (xact.c: CommitTransaction).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose
from fix_rewind_module import compiled, need_compiler

from harness.postgres.session import Session

SCHEMA = """
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table plain (id serial primary key, v text);
create table other (id serial primary key, v text); insert into other (v) values ('kept');
"""

SOURCE = Path(__file__).parents[1] / "fixtures" / "held_commit" / "held_commit.c"
PATIENCE = 10.0


@pytest.fixture(scope="module")
def shared(engine_server: Server) -> Iterator[Case]:
    need_compiler(engine_server.version)
    case = Case(engine_server, "heldcommit", SCHEMA, reset_timeout=PATIENCE)
    yield case
    dispose(case.bench)


class Committing:
    """A session with a statement whose COMMIT, or ROLLBACK, stands still.

    Args:
        moment: as held_commit.c names it.
        statement: changes the row of the table ``seeded`` in pg_class.

    Attributes:
        begun: whether it was begun.
    """

    def __init__(self, case: Case, moment: str, statement: str) -> None:
        self.case = case
        server = case.bench.server
        assert server.data is not None
        module = compiled(SOURCE, server.version, server.data.parent)
        self._file = module.with_name("held")
        self._session = case.bench.superuser()
        self._session.script(
            f"load '{module}'; set held_commit.at = '{moment}'; set held_commit.file = '{self._file}'"
        )
        self._thread = threading.Thread(target=self._session.execute, args=(statement,))
        self.begun = False

    def begin(self) -> None:
        """Run the statement; returns when it stands still, and snapshots see what it did."""
        seen = "select xmin::text || ctid from pg_class where oid = 'seeded'::regclass"
        with self.case.bench.superuser() as other:
            before, self.begun = other.value(seen), True
            self._file.touch()
            self._thread.start()
            deadline = time.monotonic() + PATIENCE
            while other.value(seen) == before:
                assert time.monotonic() < deadline, "it does not come to its end"

    def go_on(self) -> None:
        """Let it."""
        self._file.unlink(missing_ok=True)

    def close(self) -> None:
        self.go_on()
        if self.begun:
            self._thread.join(PATIENCE)
        self._session.close()


@contextmanager
def sleeping(case: Case) -> Iterator[None]:
    """Somebody is in a statement, for a moment: a reset waits for it, and looks again."""
    with case.bench.app() as slow, case.bench.superuser() as session:
        thread = threading.Thread(target=slow.execute, args=("select pg_sleep(0.3)",))
        thread.start()
        while session.value("select state from pg_stat_activity where pid = %s", (slow.pid,)) != "active":
            pass
        yield
        thread.join()


@pytest.mark.parametrize("moment", ["seen", "unlocked"])
@pytest.mark.parametrize("dirty", ["select 1", "insert into plain (v) values ('x')", "truncate other"])
def test_a_truncate_that_stands_still_in_its_commit_is_undone(
    case: Case, app: Session, dirty: str, moment: str
) -> None:
    """A cache that has not been told says that the file is the old one: the table would stay empty, since no later record names it. And
    the old file, which is unlinked last of all, must not be in use again by then."""
    truncating = Committing(case, moment, "truncate seeded")
    before: list[str] = []

    def reached(stage: str) -> None:
        # What runs as a reset begins is waited for; what begins later is not.
        if stage in ("before-look", "before-rewind") and before.count("looked") == 1 and not truncating.begun:
            truncating.begin()
        elif stage in ("before-lock", "locked") and moment == "seen":
            truncating.go_on()
        before.append(stage)

    app.execute(dirty)
    try:
        with sleeping(case):
            case.bench.engine._stage = reached
            case.reset()
        assert truncating.begun
    finally:
        truncating.close()
    case.reset()
    case.assert_pristine()
