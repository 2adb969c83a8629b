"""IntegreSQL's interface: its own clients, unchanged; and what IntegreSQL 1.1.0 itself gets wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import integresql_client_python as integresql
import psycopg
import pytest
import requests
from fix_control import project_in

from harness.control import integresql as ours
from harness.control.serving import Serving
from harness.postgres import databases, names
from harness.runs.run import Run

pytestmark = pytest.mark.server

MOST = 2


@dataclass
class Served:
    harness: Run
    serving: Serving

    @property
    def base(self) -> str:
        return f"{self.serving.server.url}/api"

    def __call__(
        self, method: str, path: str, body: Any = None, form: bytes | None = None
    ) -> tuple[int, Any]:
        payload = form if form is not None else None if body is None else json.dumps(body).encode()
        kind = "application/x-www-form-urlencoded" if form is not None else "application/json"
        answer = requests.request(
            method, f"{self.base}/v1/{path}", data=payload, headers={"Content-Type": kind}, timeout=60
        )
        with answer:
            return answer.status_code, answer.json() if answer.content else None

    def fill(self, name: str) -> None:
        """A template with one table of one row."""
        status, body = self("POST", "templates", {"hash": name})
        assert status == 200, body
        assert body["database"]["templateHash"] == name
        with psycopg.connect(url(body)) as connection:
            connection.execute("create table t (id serial primary key, name text)")
            connection.execute("insert into t (name) values ('seed')")
        assert self("PUT", f"templates/{name}") == (204, None)

    def ours(self) -> list[str]:
        session = self.harness.link.session
        return [d.name for d in databases.list_ours(session, self.harness.project)]


def url(body: Any) -> str:
    c = body["database"]["config"]
    return f"postgresql://{c['username']}:{c['password']}@{c['host']}:{c['port']}/{c['database']}"


def rows(body: Any) -> list[str]:
    with psycopg.connect(url(body)) as connection:
        return [name for (name,) in connection.execute("select name from t order by id").fetchall()]


@pytest.fixture(scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> Iterator[Served]:
    with (
        project_in(tmp_path_factory.mktemp("integresql"), folders) as project,
        Run.open_with(project.settings, project.environ) as harness,
        Serving(harness, harness.leases(1, apart=True), integresql=MOST) as serving,
    ):
        yield Served(harness, serving)


@pytest.fixture
def served(_served: Served) -> Iterator[Served]:
    yield _served
    assert _served("DELETE", "admin/templates") == (204, None)


def test_their_python_client(served: Served, tmp_path: Path) -> None:
    (tmp_path / "1.sql").write_text("create table t (id serial primary key, name text)")
    with integresql.IntegreSQL(tmp_path, base_url=served.base) as template:
        with template.initialize() as info:
            assert info is not None
            with psycopg.connect(str(info)) as connection:
                connection.execute((tmp_path / "1.sql").read_text())
        # Somebody else's initialize: it is there.
        assert template.integresql.get_template().initialize().dbinfo is None
        with template.get_database() as first, template.get_database() as second:
            assert first.name != second.name
            with psycopg.connect(str(first)) as connection:
                connection.execute("insert into t (name) values ('dirt')")
            template.get_database().mark_unmodified(first)
            again = template.get_database().open()
            assert (again.name, again.db_id) == (first.name, first.db_id)
            with psycopg.connect(str(again)) as connection:
                assert connection.execute("select count(*) from t").fetchone() == (0,)
        template.discard()
        with pytest.raises(integresql.errors.TemplateNotFound):
            template.get_database().open()
        template.integresql.reset_all_tracking()


def test_forms_and_json_are_both_read(served: Served) -> None:
    assert served("POST", "templates", form=b"hash=by-form")[0] == 200
    assert served("POST", "templates", {"hash": "by-form"})[0] == 423
    assert served("PUT", "templates/by-form") == (204, None)
    assert served("PUT", "templates/by-form") == (204, None)
    assert served("POST", "templates", {"hash": "by-form"})[0] == 423


@pytest.mark.parametrize(
    "body", [{}, {"hash": ""}, {"hash": 7}, {"hash": "a/b"}, {"hash": "x" * 201}, [1], None]
)
def test_what_is_no_hash_is_a_bad_request(served: Served, body: Any) -> None:
    status, told = served("POST", "templates", body)
    assert status == 400
    assert told["message"]


def test_unknown_templates_are_not_found(served: Served) -> None:
    for method, path in [
        ("PUT", "templates/none"),
        ("DELETE", "templates/none"),
        ("GET", "templates/none/tests"),
        ("DELETE", "templates/none/tests/0"),
        ("POST", "templates/none/tests/0/unlock"),
        ("POST", "templates/none/tests/0/recreate"),
        ("GET", "nothing"),
    ]:
        assert served(method, path)[0] == 404, path
    served.fill("there")
    assert served("DELETE", "templates/there/tests/7")[0] == 404


def test_what_is_given_back_is_pristine_at_once(served: Served) -> None:
    served.fill("a")
    for way in (("DELETE", "tests/{}"), ("POST", "tests/{}/unlock"), ("POST", "tests/{}/recreate")):
        _, got = served("GET", "templates/a/tests")
        assert rows(got) == ["seed"]
        with psycopg.connect(url(got)) as connection:
            connection.execute("insert into t (name) values ('dirt')")
            connection.execute("create table dirt ()")
        assert served(way[0], f"templates/a/{way[1].format(got['id'])}") == (204, None)
        _, again = served("GET", "templates/a/tests")
        assert again == got
        assert rows(again) == ["seed"]
        served("DELETE", f"templates/a/tests/{again['id']}")


def test_a_database_in_use_is_not_handed_out_again(served: Served) -> None:
    """IntegreSQL recycles by turns, in use or not: its clients seldom give back."""
    served.fill("a")
    held = [served("GET", "templates/a/tests")[1] for _ in range(MOST)]
    first, second = (psycopg.connect(url(one)) for one in held)
    first.execute("insert into t (name) values ('mine')")
    first.commit()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served, "GET", "templates/a/tests")
        time.sleep(3 * ours.LOOK)
        assert not waiting.done()
        assert rows(held[0]) == ["seed", "mine"]
        # Its client goes without a word: that is how most of them say that they are done.
        second.close()
        status, got = waiting.result(30)
    assert (status, got) == (200, held[1])
    assert rows(got) == ["seed"]
    assert rows(held[0]) == ["seed", "mine"]
    first.close()


def test_one_that_was_handed_out_and_not_entered_yet_is_in_use(served: Served) -> None:
    served.fill("a")
    held = [served("GET", "templates/a/tests")[1] for _ in range(MOST)]
    for one in held:
        served("DELETE", f"templates/a/tests/{one['id']}")
    held = [served("GET", "templates/a/tests")[1] for _ in range(MOST)]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served, "GET", "templates/a/tests")
        time.sleep(3 * ours.LOOK)
        assert not waiting.done()
        served("DELETE", f"templates/a/tests/{held[0]['id']}")
        assert waiting.result(30)[1] == held[0]


def test_who_asks_while_it_is_filled_waits(served: Served) -> None:
    _, body = served("POST", "templates", {"hash": "slow"})
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served, "GET", "templates/slow/tests")
        with psycopg.connect(url(body)) as connection:
            connection.execute("create table t (id serial, name text)")
            time.sleep(2 * ours.LOOK)
            assert not waiting.done()
        served("PUT", "templates/slow")
        status, got = waiting.result(30)
    assert status == 200
    assert rows(got) == []


def test_who_asks_while_it_is_discarded_is_told(served: Served) -> None:
    served("POST", "templates", {"hash": "bad"})
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served, "GET", "templates/bad/tests")
        time.sleep(2 * ours.LOOK)
        assert served("DELETE", "templates/bad") == (204, None)
        assert waiting.result(30)[0] == 410
    assert served("GET", "templates/bad/tests")[0] == 404
    served.fill("bad")


def test_a_client_that_dies_does_not_lock_its_template_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "ABANDONED", 1.0)
    _, body = served("POST", "templates", {"hash": "dead"})
    with psycopg.connect(url(body)) as connection:
        connection.execute("create table t (id int)")
        time.sleep(2)
        assert served("POST", "templates", {"hash": "dead"})[0] == 423
    deadline = time.monotonic() + 30
    while (answer := served("POST", "templates", {"hash": "dead"}))[0] == 423:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer[0] == 200
    with psycopg.connect(url(answer[1])) as connection:
        assert connection.execute("select to_regclass('t')").fetchone() == (None,)


def test_a_pool_that_is_still_open_keeps_no_template_from_being_finished(served: Served) -> None:
    _, body = served("POST", "templates", {"hash": "pool"})
    with psycopg.connect(url(body)) as connection:
        connection.execute("create table t (id serial, name text)")
        connection.commit()
        assert served("PUT", "templates/pool") == (204, None)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert rows(served("GET", "templates/pool/tests")[1]) == []


def test_discarding_leaves_nothing(served: Served) -> None:
    before = set(served.ours())
    served.fill("a")
    served("GET", "templates/a/tests")
    assert set(served.ours()) > before
    assert served("DELETE", "templates/a") == (204, None)
    deadline = time.monotonic() + 30
    while set(served.ours()) - before:
        assert time.monotonic() < deadline, set(served.ours()) - before
        time.sleep(0.1)


def test_two_clients_that_initialise_at_once_fill_it_once(served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: served("POST", "templates", {"hash": "once"})[0], range(4)))
    assert sorted(found) == [200, 423, 423, 423]
    assert served("PUT", "templates/once") == (204, None)


def test_an_end_leaves_no_lease_and_a_later_run_finds_the_template(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    with project_in(tmp_path, folders) as project:

        def kinds() -> list[names.Kind]:
            with Run.open_with(project.settings, project.environ) as harness:
                found = databases.list_ours(harness.link.session, harness.project)
                return [d.kind for d in found if d.kind is not None]

        for turn in range(2):
            with (
                Run.open_with(project.settings, project.environ) as harness,
                Serving(harness, harness.leases(1, apart=True), integresql=MOST) as serving,
            ):
                served = Served(harness, serving)
                if turn == 0:
                    served.fill("kept")
                    served("POST", "templates", {"hash": "half"})
                else:
                    assert served("POST", "templates", {"hash": "kept"})[0] == 423
                    assert served("POST", "templates", {"hash": "half"})[0] == 200
                assert rows(served("GET", "templates/kept/tests")[1]) == ["seed"]
            assert names.Kind.LEASE not in kinds()
            assert names.Kind.BUILDING not in kinds()


def test_another_users_connection_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.control import integresql_api

    table = Path("/proc/net/tcp")
    real = table.read_text()
    assert served("GET", "templates/none/tests")[0] == 404

    class Foreign:
        def read_text(self) -> str:
            # The kernel's list, every connection of it another user's.
            lines = table.read_text().splitlines()
            return "\n".join(
                [lines[0], *(" ".join([*w[:7], "12345", *w[8:]]) for w in map(str.split, lines[1:]))]
            )

    assert real
    monkeypatch.setattr(integresql_api, "_CONNECTIONS", Foreign())
    status, told = served("GET", "templates/none/tests")
    assert (status, "user" in told["message"]) == (403, True)
    monkeypatch.undo()
    assert not [t for t in threading.enumerate() if t.name == "pg-harness template"]
