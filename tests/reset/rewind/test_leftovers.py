"""What earlier versions of the module, and processes that were killed, leave on a server: gone at the next run, or with gc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

from harness.postgres.session import Session
from harness.reset.rewind import fit, leftovers, page_marks

SCHEMA = "create table people (id serial primary key, v text); insert into people (v) values ('x')"
OLD = "pgharness_0123456789ab"


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindleft", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.fixture
def admin(case: RewindCase) -> Iterator[Session]:
    with case.bench.server.session() as session:
        yield session


def schemas(session: Session) -> set[str]:
    return set(session.column("select nspname from pg_namespace where nspname like 'pgharness%'"))


def older(session: Session, case: RewindCase, name: str = OLD) -> None:
    """A schema as an earlier version of the module has left it."""
    path = session.value(
        "select probin from pg_proc where proname = 'pgh_know' and pronamespace = %s::regnamespace",
        (case.bench.module,),
    )
    session.script(
        f"create schema {name}; create function {name}.pgh_forget(mark text) returns void language c as '{path}'"
    )


def test_schemas_and_files_of_modules_that_nobody_uses_go(case: RewindCase, admin: Session) -> None:
    older(admin, case)
    admin.execute("create schema pgharness_of_somebody_else")
    removed: list[str] = []
    try:
        assert leftovers.sweep(admin, {case.bench.module}, removed.append) == [OLD]
        assert removed == [fit.file_of(OLD)] == ["pgh_rewind-0123456789ab.so"]
        assert schemas(admin) >= {case.bench.module, "pgharness_of_somebody_else"}
        assert leftovers.sweep(admin, {case.bench.module}, removed.append) == []
    finally:
        admin.execute("drop schema pgharness_of_somebody_else")


def test_what_another_process_uses_stays(case: RewindCase, admin: Session) -> None:
    """Its engine shows it: another version of the harness, on the same server."""
    with case.bench.app() as app:
        app.execute("insert into people (v) values ('x')")
        case.rewound("people")
        assert leftovers.sweep(admin, set(), pytest.fail) == []
        app.execute("insert into people (v) values ('x')")
        case.rewound("people")
    assert case.bench.module in schemas(admin)


def test_marks_of_databases_that_are_gone_go(case: RewindCase, admin: Session) -> None:
    if case.bench.server.data is None:
        pytest.skip("the server is in a container")
    with case.bench.app() as app:
        app.execute("insert into people (v) values ('marked')")
        mark = case.bench.engine.mark()
        folder: Path = case.bench.server.data / "pgh_marks"
        (mine,) = case.bench.engine._marks.pages
        lost = folder / page_marks.name_for("pgh_of_a_run_that_was_killed")
        lost.write_bytes(b"x" * 8192)
        leftovers.sweep(admin, {case.bench.module}, pytest.fail)
        assert [path.name for path in folder.iterdir()] == [mine]
        app.execute("insert into people (v) values ('above')")
        case.reset()
        assert app.column("select v from people order by id") == ["x", "marked"]
        mark.release()
        case.reset()
    case.assert_exact()
    assert list(folder.iterdir()) == []
