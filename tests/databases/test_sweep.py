"""Sweeping: what dead runs left goes, what lives stays, what is not ours is not looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from fix_leases import Schema, make_lease
from fix_servers import OWNER

from harness.databases import sweep, template
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.spec import TemplateSpec
from harness.databases.sweep import Leftover, Retention
from harness.databases.template import Template
from harness.errors import HarnessError
from harness.postgres import databases, names, roles
from harness.postgres.admin import Link
from harness.postgres.databases import Database
from harness.postgres.label import Label
from harness.postgres.liveness import SignOfLife
from harness.servers.port import ServerInfo

NOW = datetime(2026, 1, 2, tzinfo=UTC)
PROJECT = "0123456789"
RUN, DEAD = "a" * 16, "b" * 16
MANY = Retention(8, 14 * 86400)


def database(name: str, *, sessions: int = 0, age: float = 3600, fingerprint: str = "f" * 64) -> Database:
    then = (NOW - timedelta(seconds=age)).isoformat()
    label = Label(created=then, used=then, fingerprint=fingerprint)
    return Database(name, 1, False, True, "app", sessions, label)


def reasons(
    *observed: Database, building: bool = False, templates: Retention = MANY, keep_failed: int = 3
) -> dict[str, str]:
    left = sweep.plan(observed, frozenset({RUN}), building, NOW, templates, keep_failed)
    return {found.item.name: found.reason for found in left}


def test_leases_go_with_their_run_and_a_persons_never() -> None:
    mine, theirs = names.lease(PROJECT, RUN, "1", 0), names.lease(PROJECT, DEAD, "1", 0)
    person = names.lease(PROJECT, names.SANDBOX, "1", 0)
    assert list(reasons(database(mine), database(theirs), database(person))) == [theirs]


def test_a_session_protects() -> None:
    assert reasons(database(names.lease(PROJECT, DEAD, "1", 0), sessions=1)) == {}


def test_half_built_databases_go_unless_somebody_builds() -> None:
    half = names.building(PROJECT, "f" * 64)
    assert list(reasons(database(half))) == [half]
    assert reasons(database(half), building=True) == {}


def test_spares_and_baselines_go_with_their_template() -> None:
    kept, spare = names.template(PROJECT, "f" * 64), names.spare(PROJECT, "f" * 64)
    lost, base = names.spare(PROJECT, "e" * 64), names.baseline(PROJECT, "e" * 64)
    found = reasons(database(kept), database(spare), database(lost), database(base))
    assert sorted(found) == sorted([lost, base])


def test_half_a_spare_goes() -> None:
    template = database(names.template(PROJECT, "f" * 64))
    half = replace(database(names.spare(PROJECT, "f" * 64)), label=Label())
    assert list(reasons(template, half, database(names.spare(PROJECT, "f" * 64)))) == [half.name]


def test_the_template_of_a_mark_stays() -> None:
    """The database that was marked has been migrated since: a reset to the mark goes back to the older one."""
    lease = database(names.lease(PROJECT, names.SANDBOX, "1", 0), fingerprint="b" * 64)
    mark = database(names.mark(PROJECT, names.SANDBOX, "1_0", 1), fingerprint="a" * 64)
    mark = replace(mark, label=replace(mark.label, kind="mark"))
    templates = [
        database(names.template(PROJECT, c * 64), fingerprint=c * 64, age=age)
        for c, age in (("a", 3), ("b", 2), ("c", 1))
    ]
    none = Retention(0, settings=("keep_templates", ""))
    assert list(reasons(lease, mark, *templates, templates=none)) == [templates[2].name]


def test_templates_go_by_age_and_count_but_not_while_they_are_leased() -> None:
    fingerprints = [c * 64 for c in "abcdef"]
    templates = [
        database(names.template(PROJECT, f), age=day * 86400, fingerprint=f)
        for day, f in enumerate(fingerprints)
    ]
    lease = database(names.lease(PROJECT, RUN, "1", 0), fingerprint=fingerprints[5])
    few = Retention(3, 3.5 * 86400, settings=("keep_templates", ""))
    found = reasons(*templates, lease, templates=few)
    assert found == {
        templates[3].name: "more than keep_templates = 3",
        templates[4].name: "not used for 4 days",
    }


@pytest.mark.parametrize("jump", [-400, 400])
def test_a_clock_that_jumps_evicts_nothing_that_is_fresh(jump: int) -> None:
    """Days: with the clock set forward, every template was old at once."""
    templates = [
        database(names.template(PROJECT, f), age=(day - jump) * 86400, fingerprint=f)
        for day, f in enumerate([c * 64 for c in "abc"])
    ]
    lease = database(names.lease(PROJECT, RUN, "1", 0), age=-jump * 86400)
    assert reasons(*templates, lease) == {}


def test_kept_databases_are_bounded_the_oldest_go() -> None:
    kept = [database(names.kept(PROJECT, DEAD), age=hours * 3600) for hours in range(5)]
    assert sorted(reasons(*kept, keep_failed=2)) == sorted(d.name for d in kept[2:])


def test_retired_ones_go_at_once() -> None:
    """Whoever retired one may have been killed, and is told that it is gone where he was not."""
    new, entered = database(names.retired(PROJECT), age=5), database(names.retired(PROJECT), sessions=1)
    assert list(reasons(new, entered)) == [new.name]


def test_what_a_killed_command_was_making_of_a_persons_goes() -> None:
    lease = names.lease(PROJECT, names.SANDBOX, "1", 0)
    half, mark = names.claiming(lease), names.mark(PROJECT, names.SANDBOX, "1_0", 1)
    whole = replace(
        database(names.mark(PROJECT, names.SANDBOX, "1_0", 2)), label=Label(kind="mark", number=2)
    )
    observed = [database(lease), database(half), database(mark), whole]
    assert sorted(reasons(*observed)) == sorted([half, mark])
    # As long as one is at work, it is its own.
    left = sweep.plan(observed, frozenset({names.SANDBOX}), False, NOW, MANY, 3)
    assert left == []


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "GRACE", timedelta(0))


def test_sigkill_leaves_nothing_after_the_next_sweep(
    link: Link, server: ServerInfo, checkout: str, made: Template, no_grace: None
) -> None:
    """Kill for real: the sign of life vanishes with the session, the sweep of the next command puts it right."""
    code = (
        "import sys; sys.path[:0] = sys.argv[4].split('\\n')\n"
        "import signal\n"
        "from fix_leases import *\n"
        "from harness.dsn import Dsn\n"
        "from harness.postgres.liveness import SignOfLife\n"
        "link = Link(Dsn.parse(sys.argv[1]), sys.argv[2])\n"
        "run = names.run_id()\n"
        "life = SignOfLife(link.another(), [('run', run)])\n"
        "made = template.ensure(link.session, sys.argv[3], TemplateSpec('default', [Schema()]), OWNER)\n"
        "lease = make_lease(Clones(link, sys.argv[3], OWNER, connections=5), made, run)\n"
        "print(lease.dsn.database, flush=True)\n"
        "signal.pause()\n"
    )
    arguments = [server.dsn.url, server.server_id, checkout, "\n".join(sys.path)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert databases.find(link.session, name) is not None
        assert sweep.sweep(link.session, checkout, MANY, 3) == []
    finally:
        process.kill()
        process.communicate(timeout=20)
    swept = wait_for(lambda: sweep.sweep(link.session, checkout, MANY, 3))
    assert [d.item.name for d in swept] == [name]
    left = [d.kind.value for d in databases.list_ours(link.session, checkout) if d.kind]
    assert left == ["t"]


def test_a_dry_run_drops_nothing(
    link: Link, checkout: str, clones: Clones, made: Template, no_grace: None
) -> None:
    lease = make_lease(clones, made, DEAD)
    doomed = sweep.sweep(link.session, checkout, MANY, 3, dry_run=True)
    assert [d.item.name for d in doomed] == [lease.dsn.database]
    assert lease.exists()


def test_another_checkout_is_not_touched(link: Link, clones: Clones, made: Template, no_grace: None) -> None:
    lease = make_lease(clones, made, DEAD)
    assert sweep.sweep(link.session, names.digest("elsewhere", 10), MANY, 3) == []
    assert lease.exists()


def wait_for(look: Callable[[], list[Leftover[Database]]]) -> list[Leftover[Database]]:
    """The first answer that is not empty, within ten seconds."""
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while not (found := look()):
        assert datetime.now(UTC) < deadline, "nothing came"
    return found


def test_a_backend_killed_with_sigkill_ends_all_sessions_and_no_lease_is_lost(
    server_of: Callable[[str], ServerInfo],
) -> None:
    """Trap 19: all signs of life vanish at once; holders take them again, and a sweep waits for a grace period."""
    info = server_of("15")
    link = Link(info.dsn, info.server_id)
    project = names.digest(names.token(), 10)
    first, second = names.run_id(), names.run_id()
    roles.ensure(link.session, OWNER.name, password=OWNER.password, attributes=(), superuser=False)
    made = template.ensure(link.session, project, TemplateSpec("default", [Schema()]), OWNER)
    clones = Clones(link, project, OWNER, connections=5)
    lives = [SignOfLife(link.another(), [("run", run)]) for run in (first, second)]
    leases: list[Lease] = [make_lease(clones, made, run) for run in (first, second)]
    try:
        victim = psycopg.connect(leases[0].url)
        kill_backend(victim.info.backend_pid)
        wait_for_server(link, lambda: all_back(lives))
        link.close()
        swept = wait_for_server(link, lambda: sweep.sweep(link.session, project, MANY, 3))
        assert swept == []
        wait_for_server(link, lambda: all_alive(link, [first, second]))
        assert all(lease.exists() for lease in leases)
        for lease in leases:
            assert lease.reset().strategy == "clone"
        victim.close()
    finally:
        for life in lives:
            life.close()
        for lease in leases:
            lease.release()
        for found in databases.list_ours(link.session, project):
            sweep.drop_template(link.session, project, found)
        link.close()


def kill_backend(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def all_back(lives: list[SignOfLife]) -> None:
    epochs = [life.epoch for life in lives]
    assert max(epochs) <= 1
    if epochs != [1, 1]:
        raise psycopg.OperationalError("not yet")


def all_alive(link: Link, runs: list[str]) -> bool:
    found = sweep.alive_runs(link.session, runs)
    assert found == frozenset(runs) or found < frozenset(runs)
    if len(found) < len(runs):
        raise psycopg.OperationalError("not yet")
    return True


def wait_for_server(link: Link, act: Callable[[], object]) -> object:
    """Repeat through the server's recovery, for 20 seconds at most."""
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while True:
        try:
            return act()
        except (HarnessError, psycopg.Error):
            link.close()
            assert datetime.now(UTC) < deadline, "the server did not come back"


def test_the_grace_period_is_for_what_was_leased_before_the_crash(
    link: Link, clones: Clones, made: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that has just been started, nothing is older: six killed runs kept a new one out for half a minute."""
    monkeypatch.setattr(sweep, "GRACE", timedelta(days=1))
    dead, before, unsaid = (make_lease(clones, made, names.run_id()) for _ in range(3))
    for lease, claimed in ((before, "another life"), (unsaid, None)):
        name = lease.dsn.database
        label = databases.find(link.session, name).label  # type: ignore[union-attr]
        link.session.execute(databases.label_statement(name, replace(label, claimed=claimed)))
    left = sweep.sweep(link.session, clones.project, MANY, 3)
    assert [found.item.name for found in left] == [dead.dsn.database]
    assert before.exists()
    assert unsaid.exists()
