"""Rewinds among everything else: resets by rows, marks, what changed, notes for other processes, and what gets lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import pytest
from fix_reset_case import at
from fix_reset_servers import Server, dispose
from fix_rewind import RewindCase

from harness.errors import ServerRefused
from harness.postgres.incarnation import Incarnation
from harness.postgres.session import Session
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine
from harness.reset.rewind.rewinder import Rewinder
from harness.reset.watermark import Watermark, take

SCHEMA = """
create table people (id serial primary key, v text);
insert into people (v) select 'row ' || i from generate_series(1, 30) i;
create table others (id serial primary key, v text);
create table large (id integer primary key, v text);
insert into large select i, repeat('x', 200) from generate_series(1, 8000) i;
"""

WRITES = (
    "insert into people (v) values ('x')",
    "update people set v = 'changed' where id % 5 = 0",
    "delete from people where id < 10",
    "truncate others restart identity",
    "insert into others (v) select 'x' from generate_series(1, 300)",
    "update large set v = 'y' where id % 500 = 0",
    "create temporary table t (id serial) on commit drop",
    "vacuum people",
)


@pytest.fixture(scope="module")
def shared(reset_server: Server, rewind_schema: Callable[[Server], str]) -> Iterator[RewindCase]:
    case = RewindCase(reset_server, "rewindon", SCHEMA, module=rewind_schema(reset_server))
    yield case
    dispose(case.bench)


@pytest.fixture
def by_rows(case: RewindCase) -> Iterator[Callable[[], str]]:
    """Resets without pages, and says how."""

    def reset() -> str:
        case.rewinder.off = "for this test"
        try:
            return case.reset().strategy
        finally:
            case.rewinder.off = ""

    yield reset
    case.rewinder.off = ""


# --- by rows and by pages, in turn -----------------------------------------------------------------------


def test_after_any_resets_by_rows_a_rewind_is_exact(
    case: RewindCase, app: Session, by_rows: Callable[[], str]
) -> None:
    """What they have put back lies elsewhere than in the baseline, and only records of our own say so."""
    chance = random.Random(13)
    for _ in range(12):
        for _ in range(chance.randrange(4)):
            for write in chance.sample(WRITES, 3):
                app.execute(write)
            by_rows()
            case.assert_pristine()
        app.execute(chance.choice(WRITES))
        case.reset()
        case.assert_exact()


def test_rows_that_were_put_back_are_put_back_as_pages_though_the_next_test_only_reads(
    case: RewindCase, app: Session, by_rows: Callable[[], str]
) -> None:
    app.execute("delete from large where id % 700 = 0")
    assert by_rows() == "restore"
    app.rows("select * from large where id < 100")
    case.rewound("large")


def test_more_log_than_may_be_read_is_left_to_the_rows(case: RewindCase, app: Session) -> None:
    case.rewinder._most = b"20000"
    try:
        app.execute("insert into others (v) select repeat('x', 100) from generate_series(1, 1000)")
        assert case.reset().strategy == "restore"
        assert "MB of log" in case.rewinder.left
        case.assert_pristine()
    finally:
        case.rewinder._most = b"60000000"
    case.rewound("others")


# --- marks, and what changed -------------------------------------------------------------------------------


def test_a_mark_is_reset_to_and_released_and_then_pages_go_back(case: RewindCase, app: Session) -> None:
    app.script("insert into people (v) values ('marked'); update large set v = 'z' where id = 3")
    mark = case.bench.engine.mark()
    app.script("insert into others (v) values ('x'); update people set v = 'other'")
    case.reset()
    assert app.rows("select count(*), count(*) filter (where v = 'marked') from people") == [(31, 1)]
    assert app.rows("select v from others") == []
    mark.release()
    case.rewound("people", "large")


def test_a_mark_after_a_rewind_holds_what_came_after_it(case: RewindCase, app: Session) -> None:
    for turn in range(3):
        app.execute("insert into people (v) values ('before the rewind')")
        case.rewound("people")
        app.execute("insert into people (v) values (%s)", (f"marked {turn}",))
        mark = case.bench.engine.mark()
        app.execute("delete from people")
        case.reset()
        assert app.rows("select v from people where id > 30") == [(f"marked {turn}",)]
        mark.release()
    case.rewound("people")


def test_what_changed_is_told_after_a_rewind_and_names_nothing_of_it(case: RewindCase, app: Session) -> None:
    app.script(
        "create table t (id serial primary key); insert into people (v) select 'x' from generate_series(1, 500)"
    )
    case.reset()
    assert not case.bench.engine.changes().tables
    app.execute("insert into others (v) values ('x')")
    found = case.bench.engine.changes()
    assert {found.names[oid] for oid in found.tables} == {"others"}
    assert found.ddl == ()
    case.rewound("others")


def test_ddl_is_told_and_then_rewound(case: RewindCase, app: Session) -> None:
    app.execute("alter table people add column extra text")
    assert case.bench.engine.changes().ddl != ()
    case.rewound()
    assert case.bench.engine.changes().ddl == ()


# --- another clone, another process ----------------------------------------------------------------------


def test_a_clone_in_between_is_rewound_like_the_one_before(case: RewindCase) -> None:
    for _ in range(3):
        with case.bench.app() as app:
            app.execute("alter table people add column extra text")
            case.rewound()
            app.execute("insert into people (v) values ('x')")
        case.bench.engine.replaced()
        case.bench.reclone()
        with case.bench.app() as app:
            app.execute("insert into people (v) values ('x')")
            case.rewound("people")


def carried(note: Watermark) -> Watermark:
    """Through a file, as ``pg-harness reset`` does."""
    bare = Watermark(note.position, note.database, note.role, note.shared, clean=note.clean)
    written = note.carried()
    return bare if written is None else bare.carrying(json.loads(json.dumps(written)))


def test_another_process_goes_on_from_a_note(
    case: RewindCase, app: Session, by_rows: Callable[[], str]
) -> None:
    """Of a fresh clone, of a rewind, of rows, of nothing: each opens an engine of its own, and rewinds what is there."""
    chance = random.Random(7)
    note = case.bench.engine.watermark
    for turn in range(10):
        assert note is not None
        app.execute(chance.choice(WRITES))
        case.bench.engine.close()
        case.bench.engine = case.bench.open_engine()
        case.bench.engine.rebase(carried(note))
        if turn % 3 == 1:
            by_rows()
            case.assert_pristine()
        else:
            case.reset()
            assert case.rewinder.left == ""
            case.assert_exact()
        note = case.bench.engine.watermark


def test_a_note_that_does_not_say_when_pages_were_equal_is_for_rows(case: RewindCase, app: Session) -> None:
    note = case.bench.engine.watermark
    assert note is not None
    app.execute("insert into people (v) values ('x')")
    case.bench.engine.close()
    case.bench.engine = case.bench.open_engine()
    found = {
        **(note.carried() or {"own": [], "files": [], "touched": {}, "places": {}, "rewinds": []}),
        "clean": "",
    }
    case.bench.engine.rebase(note.carrying(found))
    assert case.reset().strategy == "restore"
    assert "not known" in case.rewinder.off
    case.assert_pristine()
    case.bench.reclone()
    app.close()
    with case.bench.app() as again:
        again.execute("insert into people (v) values ('x')")
        case.rewound("people")


def test_the_note_of_a_fresh_clone_says_so(case: RewindCase) -> None:
    note = take(case.bench.admin, case.bench.name, "app")
    assert (note.clean, note.rewinds, note.carried()) == (note.position, (), None)
    assert note.life == Incarnation.of(case.bench.admin)


# --- settings of the server's own catalogs ----------------------------------------------------------------


def test_settings_of_the_database_and_the_role_are_put_back(case: RewindCase) -> None:
    with case.bench.superuser() as admin:
        admin.execute(f"alter database {case.bench.name} set work_mem = '1MB'")
        admin.execute("alter role app set statement_timeout = '1h'")
        admin.execute("insert into people (v) values ('x')")
        assert case.reset().strategy == "rewind"
        assert admin.rows("select from pg_db_role_setting where setrole <> 0 or setdatabase <> 0") == []
    case.assert_exact()


def test_a_setting_that_is_committed_after_the_rewind_is_put_back_by_the_next(
    case: RewindCase, app: Session
) -> None:
    with case.bench.server.session() as elsewhere:
        elsewhere.script("begin; alter role app set statement_timeout = '1h'")
        app.execute("insert into people (v) values ('x')")
        case.rewound("people")
        elsewhere.script("commit")
        case.reset()
        assert elsewhere.rows("select from pg_db_role_setting where setrole <> 0 or setdatabase <> 0") == []


def test_another_comment_of_the_database_is_a_clone(case: RewindCase, app: Session) -> None:
    with case.bench.superuser() as admin:
        admin.execute(f"comment on database {case.bench.name} is 'other'")
    app.execute("insert into people (v) values ('x')")
    with pytest.raises(RecloneNeeded, match="the comment of the database"):
        case.reset()


# --- what gets lost -----------------------------------------------------------------------------------------


def test_a_session_of_ours_that_is_opened_again_is_told_again(case: RewindCase, app: Session) -> None:
    for _ in range(2):
        case.bench.engine._connections.wal.session.close()
        app.execute("insert into people (v) values ('x')")
        case.rewound("people")


def test_a_session_of_ours_that_is_killed_is_a_clone(case: RewindCase, app: Session) -> None:
    app.execute("insert into people (v) values ('x')")
    case.bench.admin.execute("select pg_terminate_backend(%s, 5000)", (case.bench.engine.ours[0],))
    with pytest.raises(RecloneNeeded, match="a session of the reset was lost"):
        case.reset()
    case.bench.reclone()
    with case.bench.app() as again:
        again.execute("insert into people (v) values ('x')")
        case.rewound("people")


def test_functions_that_are_gone_are_rows_from_then_on(
    reset_server: Server, rewind_schema: Callable[[Server], str], app: Session, case: RewindCase
) -> None:
    schema = rewind_schema(reset_server)
    case.bench.admin.execute(f"alter schema {schema} rename to elsewhere")
    try:
        case.bench.engine._connections.wal.session.close()
        app.execute("insert into people (v) values ('x')")
        assert case.reset().strategy == "restore"
        assert "the module's functions are gone" in case.rewinder.off
        case.assert_pristine()
        case.bench.engine.rebase()
        assert "the module's functions are gone" in case.rewinder.off
    finally:
        case.bench.admin.execute(f"alter schema elsewhere rename to {schema}")
        case.bench.engine.close()
        case.bench.engine = case.bench.open_engine()


def test_functions_that_go_between_two_resets_are_rows_from_then_on(
    reset_server: Server, rewind_schema: Callable[[Server], str], app: Session, case: RewindCase
) -> None:
    """The statement was prepared while they were there."""
    schema = rewind_schema(reset_server)
    admin = case.bench.admin
    definition = admin.value(f"select pg_get_functiondef('{schema}.pgh_rewind'::regproc)")
    app.execute("insert into people (v) values ('x')")
    case.rewound("people")
    admin.execute(f"drop function {schema}.pgh_rewind")
    try:
        app.execute("insert into people (v) values ('x')")
        assert case.reset().strategy == "restore"
        assert "the module's functions are gone" in case.rewinder.off
        case.assert_pristine()
    finally:
        admin.execute(definition.replace("%", "%%") if "%" in definition else definition)
        case.bench.engine.close()
        case.bench.engine = case.bench.open_engine()


def test_a_log_that_was_recycled_is_no_error_of_the_rewind(
    case: RewindCase, app: Session, by_rows: Callable[[], str]
) -> None:
    """The way by rows has begun later, and needs none of what is gone."""
    app.execute("insert into people (v) values ('x')")
    assert by_rows() == "restore"
    for _ in range(3):
        case.bench.admin.execute("select pg_switch_wal()")
        case.bench.admin.execute("create table if not exists noise ()")
        case.bench.admin.execute("drop table if exists noise")
        by_rows()
        case.bench.admin.execute("checkpoint")
    app.execute("insert into people (v) values ('x')")
    assert case.reset().strategy == "restore"
    assert "recycled" in case.rewinder.off
    case.assert_pristine()
    case.bench.engine.rebase()
    app.close()
    case.bench.reclone()
    with case.bench.app() as again:
        again.execute("insert into people (v) values ('x')")
        case.rewound("people")


def test_an_error_that_is_not_understood_is_a_clone(
    case: RewindCase, app: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages may have been written before it."""
    session = case.bench.engine._connections.wal.session

    def fail(name: bytes, values: object) -> None:
        raise ServerRefused("could not extend file: No space left on device", sqlstate="53100", statement="")

    app.execute("insert into people (v) values ('x')")
    monkeypatch.setattr(session.connection, "ask_prepared", fail)
    with pytest.raises(RecloneNeeded, match=r"the pages cannot be put back: .*No space left"):
        case.reset()
    with pytest.raises(RecloneNeeded, match="not known"):
        case.reset()


def test_ctrl_c_right_after_a_rewind_leaves_nothing_that_passes_for_pristine(
    case: RewindCase, app: Session
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    app.execute("insert into people (v) values ('x')")
    at(case, "rewound", interrupt)
    with pytest.raises(KeyboardInterrupt):
        case.reset()
    with pytest.raises(RecloneNeeded, match="not known"):
        case.reset()


def test_a_baseline_that_somebody_dropped_is_no_rewind_to_nothing(
    reset_server: Server, rewind_schema: Callable[[Server], str]
) -> None:
    case = RewindCase(reset_server, "rewindgone", SCHEMA, module=rewind_schema(reset_server))
    try:
        with case.bench.app() as app:
            app.execute("insert into people (v) values ('x')")
            case.bench.admin.execute("drop database rewindgone_z with (force)")
            with pytest.raises(RecloneNeeded):
                case.reset()
            assert app.value("select count(*) from people") == 31
    finally:
        dispose(case.bench)


def test_it_says_what_it_is(case: RewindCase) -> None:
    assert isinstance(case.bench.engine, ResetEngine)
    assert isinstance(case.rewinder, Rewinder)
    case.rewinder.off = case.rewinder.left = ""
    assert repr(case.rewinder) == "<Rewinder on>"
    case.rewinder.off = "no module"
    assert repr(case.rewinder) == "<Rewinder off: no module>"
    case.rewinder.off = ""
