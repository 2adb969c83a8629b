"""What each request does in real databases, and how each mistake is answered."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg
import pytest
from fix_control import Run

pytestmark = pytest.mark.server


def test_a_reset_puts_back_what_changed_and_keeps_the_connection(served: Run) -> None:
    with psycopg.connect(served.leases[0].url, autocommit=True) as connection:
        pid = connection.info.backend_pid
        connection.execute(
            "insert into users (name) values ('one'); update users set name = 'x' where id = 1"
        )
        report = served.client.ok("POST", "/v1/reset/1")
        assert report["strategy"] in ("restore", "rewind")
        assert "users" in report["tables"]
        assert report["id"] == 1
        assert connection.execute("select name, pg_backend_pid() from users").fetchall() == [("seed", pid)]


def test_every_database_of_a_lease_is_reset(served: Run) -> None:
    with served.leases[0]["analytics"].connect() as connection:
        connection.execute("insert into events values (1)")
    served.client.ok("POST", "/v1/reset/1")
    with served.leases[0]["analytics"].connect() as connection:
        assert connection.execute("select count(*) from events").fetchone() == (0,)


def test_what_is_not_named_is_left_alone(served: Run) -> None:
    served.add("mine", 1)
    served.add("theirs", 2)
    served.client.ok("POST", "/v1/reset/1")
    assert served.rows(1) == ["seed"]
    assert served.rows(2) == ["seed", "theirs"]


def test_an_open_transaction_is_waited_for_then_ended_and_named(served: Run) -> None:
    with psycopg.connect(served.leases[0].url) as connection:
        connection.execute("insert into users (name) values ('open')")
        ended = served.client.ok("POST", "/v1/reset/1")["ended"]
        assert len(ended) == 1
        assert str(connection.info.backend_pid) in ended[0]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert served.rows() == ["seed"]


def test_a_changed_schema_comes_back_and_a_clone_says_why(served: Run) -> None:
    with served.leases[0].connect() as connection:
        connection.execute("drop table users")
    report = served.client.ok("POST", "/v1/reset/1")
    # By rows it is a clone; pages are put back whatever stood on them.
    assert report["strategy"] in ("clone", "rewind")
    assert bool(report["reason"]) == (report["strategy"] == "clone")
    assert served.rows() == ["seed"]


def test_marks_stack(served: Run) -> None:
    served.add("of the file")
    first = served.client.ok("POST", "/v1/mark/1")["mark"]
    assert first.isdigit()
    served.add("of the group")
    assert served.client.ok("POST", "/v1/mark/1?name=group") == {"id": 1, "mark": "group"}
    served.add("of the test")
    served.client.ok("POST", "/v1/reset/1")
    assert served.rows() == ["seed", "of the file", "of the group"]
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == [first, "group"]
    served.client.ok("POST", f"/v1/reset/1?to={first}")
    assert served.rows() == ["seed", "of the file"]
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == [first]
    served.add("again")
    served.client.ok("DELETE", f"/v1/mark/1/{first}")
    assert served.rows() == ["seed", "of the file", "again"]
    served.client.ok("POST", "/v1/reset/1")
    assert served.rows() == ["seed"]


@pytest.mark.parametrize("name", ["users/with ada", "été", "50%41", "a?b#c", "/", "."])
def test_any_name_of_a_mark_can_be_said_in_an_address(served: Run, name: str) -> None:
    quoted = quote(name, safe="")
    served.client.ok("POST", f"/v1/mark/1?name={quoted}")
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == [name]
    served.client.ok("POST", f"/v1/reset/1?to={quoted}")
    served.client.ok("DELETE", f"/v1/mark/1/{quoted}")
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == []


def test_the_template_is_below_all_marks(served: Run) -> None:
    served.add("marked")
    served.client.ok("POST", "/v1/mark/1")
    served.client.ok("POST", "/v1/reset/1?to=template")
    assert served.rows() == ["seed"]
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == []


def test_a_released_mark_takes_those_above_it_along(served: Run) -> None:
    first, second, third = (int(served.client.ok("POST", "/v1/mark/1")["mark"]) for _ in range(3))
    served.client.ok("DELETE", f"/v1/mark/1/{second}")
    assert served.client.ok("GET", "/v1/status")["leases"][0]["marks"] == [str(first)]
    # A name is given once: a client that kept the old one must not come back to another state.
    assert int(served.client.ok("POST", "/v1/mark/1")["mark"]) == third + 1


def test_changes_are_told_and_left(served: Run) -> None:
    assert served.client.ok("GET", "/v1/changes/1")["changed"] is False
    served.add("new")
    told = served.client.ok("GET", "/v1/changes/1")
    assert told["changed"] is True
    assert any("users" in line for line in told["databases"]["default"])
    assert told["databases"]["analytics"] == []
    assert told["details"]["default"]["tables"]["users"]["inserted"] == 1
    assert told["details"]["analytics"] == {"tables": {}, "sequences": [], "schema": [], "other": False}
    assert served.rows() == ["seed", "new"]


def test_the_environment_of_a_lease_is_whole(served: Run) -> None:
    told = served.client.ok("GET", "/v1/env/2")
    assert told["urls"] == {"default": served.leases[1].url, "analytics": served.leases[1]["analytics"].url}
    assert told["env"]["DATABASE_URL"] == served.leases[1].url
    assert told["env"]["PGDATABASE"] == served.leases[1].dsn.database
    assert told["env"]["OWN"] == served.leases[1].dsn.sqlalchemy
    assert told["env"]["ANALYTICS_URL"] == served.leases[1]["analytics"].url
    assert told["env"]["PGHARNESS_LEASE"] == "2"


def test_status_tells_who_holds_what_without_passwords(served: Run) -> None:
    served.client.ok("POST", "/v1/reset/2")
    lease = served.client.ok("POST", "/v1/lease", {"worker": "a", "pid": os.getpid()})
    reply = served.client("GET", "/v1/status")
    first, second = reply.body["leases"]
    assert (first["id"], first["state"], first["worker"], first["pid"]) == (1, "leased", "a", os.getpid())
    assert (second["state"], second["worker"], second["pid"]) == ("numbered", "", None)
    assert second["resets"] == {"nothing": 1}
    assert first["databases"]["default"] == served.leases[0].dsn.database
    assert lease["env"]["PGPASSWORD"] not in str(reply.body)
    assert reply.headers["Cache-Control"] == "no-store"


# --- leases ------------------------------------------------------------------------------------------------


def test_leases_are_pristine_and_each_is_somebodys(served: Run) -> None:
    served.add("left over", 1)
    first = served.client.ok("POST", "/v1/lease")
    second = served.client.ok("POST", "/v1/lease", {"wait": 0})
    assert {first["id"], second["id"]} == {1, 2}
    assert first["url"] == first["env"]["DATABASE_URL"] == served.leases[first["id"] - 1].url
    assert served.rows(1) == ["seed"]


def test_the_same_worker_gets_the_same_lease(served: Run) -> None:
    first = served.client.ok("POST", "/v1/lease", {"worker": "w"})
    served.add("by w", first["id"])
    again = served.client.ok("POST", "/v1/lease", {"worker": "w"})
    assert again == first
    assert served.rows(first["id"]) == ["seed"]
    assert served.client.ok("POST", "/v1/lease", {"worker": 7})["id"] != first["id"]


def test_who_waits_too_long_is_told_who_holds_them(served: Run) -> None:
    served.client.ok("POST", "/v1/lease", {"worker": "a", "pid": os.getpid()})
    served.client.ok("POST", "/v1/lease", {"worker": "b"})
    began = time.monotonic()
    problem = served.client.refused(503, "POST", "/v1/lease", {"worker": "c", "wait": 0.3})
    assert time.monotonic() - began >= 0.3
    assert [(h["id"], h["worker"], h["pid"]) for h in problem["holders"]] == [
        (1, "a", os.getpid()),
        (2, "b", None),
    ]
    assert f"process {os.getpid()}" in problem["detail"]
    assert "run -n" in problem["detail"]


def test_who_waits_gets_what_is_released(served: Run) -> None:
    held = [served.client.ok("POST", "/v1/lease")["id"] for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served.another().ok, "POST", "/v1/lease", {"wait": 30})
        while served.client.ok("GET", "/v1/status")["waiting"] == 0:
            time.sleep(0.01)
        served.add("left over", held[1])
        served.client.ok("POST", f"/v1/release/{held[1]}")
        assert waiting.result(30)["id"] == held[1]
    assert served.rows(held[1]) == ["seed"]


def test_more_wait_than_there_are_threads_and_all_get_one(served: Run) -> None:
    """Who gives back must not wait behind those that wait for it."""
    many = 40
    order: list[int] = []

    def test(_: int) -> int:
        client = served.another()
        lease = client.ok("POST", "/v1/lease", {"wait": 60})
        served.add("mine", lease["id"])
        assert served.rows(lease["id"]) == ["seed", "mine"]
        order.append(lease["id"])
        client.ok("POST", f"/v1/release/{lease['id']}")
        return int(lease["id"])

    with ThreadPoolExecutor(many) as pool:
        assert set(pool.map(test, range(many))) == {1, 2}
    assert len(order) == many


def test_a_lease_whose_process_has_gone_is_taken_back(served: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        first = served.client.ok("POST", "/v1/lease", {"pid": child.pid})
        second = served.client.ok("POST", "/v1/lease")
        served.client.refused(503, "POST", "/v1/lease", {"wait": 0})
        child.kill()
    assert served.client.ok("POST", "/v1/lease", {"wait": 5})["id"] == first["id"]
    assert second["id"] != first["id"]


def test_sessions_of_another_holder_are_ended_and_ones_own_are_kept(served: Run) -> None:
    mine = {"pid": os.getpid()}
    lease = served.client.ok("POST", "/v1/lease", mine)
    with psycopg.connect(lease["url"], autocommit=True) as connection:
        connection.execute("select 1")
        served.client.ok("POST", f"/v1/release/{lease['id']}")
        again = served.client.ok("POST", "/v1/lease", mine)
        assert again["id"] == lease["id"]
        connection.execute("select 1")
        served.client.ok("POST", f"/v1/release/{lease['id']}")
        assert served.client.ok("POST", "/v1/lease", {"worker": "another"})["id"] == lease["id"]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_a_client_that_goes_away_while_it_waits_takes_nothing(served: Run) -> None:
    held = [served.client.ok("POST", "/v1/lease")["id"] for _ in range(2)]
    with socket.create_connection(("127.0.0.1", served.client.port)) as raw:
        raw.sendall(
            f"POST /v1/lease HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.client.token}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
        )
        while served.client.ok("GET", "/v1/status")["waiting"] == 0:
            time.sleep(0.01)
    while served.client.ok("GET", "/v1/status")["waiting"] == 1:
        time.sleep(0.01)
    served.client.ok("POST", f"/v1/release/{held[0]}")
    assert served.client.ok("POST", "/v1/lease", {"wait": 5})["id"] == held[0]


def test_what_is_used_by_its_number_is_not_handed_out(served: Run) -> None:
    served.client.ok("POST", "/v1/reset/1")
    assert served.client.ok("POST", "/v1/lease", {"wait": 0})["id"] == 2
    served.client.refused(503, "POST", "/v1/lease", {"wait": 0})
    served.client.ok("POST", "/v1/release/1")
    assert served.client.ok("POST", "/v1/lease", {"wait": 0})["id"] == 1


def test_releasing_twice_is_once(served: Run) -> None:
    served.client.ok("POST", "/v1/release/1")
    served.client.ok("POST", "/v1/release/1")


# --- side by side ------------------------------------------------------------------------------------------


def test_two_resets_of_one_lease_run_one_after_the_other(served: Run) -> None:
    served.add("new")
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda _: served.another().ok("POST", "/v1/reset/1"), range(8)))
    assert sorted(reply["strategy"] for reply in replies)[:7] == ["nothing"] * 7
    assert served.rows() == ["seed"]


def test_a_lease_that_waits_for_a_transaction_holds_no_other_up(served: Run) -> None:
    served.client.ok("POST", "/v1/reset/2")
    with psycopg.connect(served.leases[0].url) as connection, ThreadPoolExecutor() as pool:
        connection.execute("insert into users (name) values ('open')")
        waiting = pool.submit(served.another().ok, "POST", "/v1/reset/1")
        for turn in range(5):
            served.add(str(turn), 2)
            served.client.ok("POST", "/v1/reset/2")
            assert served.rows(2) == ["seed"]
        assert not waiting.done()
        connection.rollback()
        assert waiting.result(30)["ended"] == []


def test_many_resets_of_all_leases_at_once_leave_each_pristine(served: Run) -> None:
    def work(number: int) -> None:
        client = served.another()
        for turn in range(15):
            served.add(str(turn), number)
            client.ok("POST", f"/v1/reset/{number}")
            assert served.rows(number) == ["seed"]

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, (1, 2)))


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/reset/3", "/v1/reset/0", "/v1/mark/99", "/v1/release/3"])
def test_an_unknown_lease_is_named_and_no_other_is_taken(served: Run, path: str) -> None:
    served.add("stays")
    assert "2 databases" in served.client.refused(404, "POST", path)["detail"]
    assert served.rows() == ["seed", "stays"]


@pytest.mark.parametrize("word", ["one", "-1", "1.0", "%31%20", "1e0", "99999999999"])
def test_what_is_no_number_is_no_lease(served: Run, word: str) -> None:
    assert "DATABASE_URL_1" in served.client.refused(404, "POST", f"/v1/reset/{word}")["detail"]


def test_an_unknown_mark_is_named_with_those_that_are_there(served: Run) -> None:
    served.client.ok("POST", "/v1/mark/1?name=there")
    served.add("stays")
    assert "there" in served.client.refused(404, "POST", "/v1/reset/1?to=gone")["detail"]
    assert "there" in served.client.refused(404, "DELETE", "/v1/mark/1/gone")["detail"]
    served.client.refused(409, "POST", "/v1/mark/1?name=there")
    served.client.refused(422, "POST", "/v1/mark/1?name=template")
    assert served.rows() == ["seed", "stays"]


def test_without_the_right_token_nothing_is_done(served: Run) -> None:
    served.add("stays")
    assert "PGHARNESS_CONTROL_TOKEN" in served.client.refused(401, "POST", "/v1/reset/1", token="")["detail"]
    problem = served.client.refused(401, "POST", "/v1/reset/1", token="x" * 43)
    assert served.harness.run in problem["detail"]
    assert served.client.token not in str(problem)
    served.client.refused(401, "GET", "/v1/status", token="é")
    assert served.rows() == ["seed", "stays"]


def test_a_copys_token_is_good_for_its_lease_only(served: Run) -> None:
    mine = served.another(served.serving.variables(2)["PGHARNESS_CONTROL_TOKEN"])
    assert served.serving.variables(2)["PGHARNESS_LEASE"] == "2"
    mine.ok("POST", "/v1/reset/2")
    served.add("stays", 1)
    assert "lease 2" in mine.refused(403, "POST", "/v1/reset/1")["detail"]
    for method, path in [
        ("POST", "/v1/mark/1"),
        ("GET", "/v1/env/1"),
        ("POST", "/v1/release/1"),
        ("GET", "/v1/changes/1"),
        ("POST", "/v1/lease"),
    ]:
        mine.refused(403, method, path)
    assert served.rows(1) == ["seed", "stays"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"pid": 0}, "pid"),
        ({"pid": "7"}, "pid"),
        ({"pid": True}, "pid"),
        ({"wait": -1}, "wait"),
        ({"wait": "long"}, "wait"),
        ({"wait": 1e9}, "wait"),
        ({"worker": ""}, "worker"),
        ({"worker": "a\nb"}, "worker"),
        ({"worker": "w" * 201}, "worker"),
        ({"wrker": "a"}, "did you mean 'worker'"),
        ([1], "JSON object"),
        ("text", "JSON object"),
    ],
)
def test_a_wrong_body_says_what_is_wrong(served: Run, body: object, said: str) -> None:
    assert said in served.client.refused(422, "POST", "/v1/lease", body)["detail"]
    assert [lease["state"] for lease in served.client.ok("GET", "/v1/status")["leases"]] == ["free", "free"]


def test_a_body_that_is_no_json_is_told(served: Run) -> None:
    for raw in (b"{", b"\xff\xfe", b"[" * 60_000):
        assert "JSON" in served.client.refused(422, "POST", "/v1/lease", raw=raw)["detail"]


def test_a_process_that_is_not_there_holds_nothing(served: Run) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert str(child.pid) in served.client.refused(409, "POST", "/v1/lease", {"pid": child.pid})["detail"]
    assert [lease["state"] for lease in served.client.ok("GET", "/v1/status")["leases"]] == ["free", "free"]


def test_a_wrong_method_or_path_is_told(served: Run) -> None:
    reply = served.client("GET", "/v1/reset/1")
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert "openapi.json" in served.client.refused(404, "GET", "/v2/status")["detail"]
    served.client.refused(405, "POST", "/healthz")


def test_health_needs_no_token(served: Run) -> None:
    reply = served.client("GET", "/healthz", token="")
    assert (reply.status, reply.body) == (200, {"status": "ok"})


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(served: Run) -> None:
    with socket.create_connection(("127.0.0.1", served.client.port), timeout=20) as raw:
        raw.sendall(
            f"POST /v1/lease HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.client.token}\r\n"
            f"Content-Length: {1 << 30}\r\n\r\n".encode()
        )
        assert b" 413 " in raw.recv(200)
    served.client.ok("GET", "/v1/status")


def test_slow_clients_hold_nobody_up(served: Run) -> None:
    slow = [socket.create_connection(("127.0.0.1", served.client.port)) for _ in range(40)]
    try:
        for one in slow:
            one.sendall(b"POST /v1/reset/1 HTTP/1.1\r\nHost: x\r\nContent-Le")
        served.client.ok("POST", "/v1/reset/1")
    finally:
        for one in slow:
            one.close()


def test_what_is_no_http_is_closed(served: Run) -> None:
    served.client.ok("GET", "/healthz")
    with socket.create_connection(("127.0.0.1", served.client.port), timeout=20) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert b"400" in raw.recv(200)
    served.client.ok("GET", "/healthz")


# --- the end -----------------------------------------------------------------------------------------------


def test_who_waits_at_the_end_of_the_run_is_told(served_alone: Run) -> None:
    for _ in range(2):
        served_alone.client.ok("POST", "/v1/lease")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(served_alone.another(), "POST", "/v1/lease", {"wait": 60})
        while served_alone.client.ok("GET", "/v1/status")["waiting"] == 0:
            time.sleep(0.01)
        began = time.monotonic()
        served_alone.serving.table.close()
        assert waiting.result(10).status == 503
        assert time.monotonic() - began < 5
    assert "over" in served_alone.client.refused(503, "POST", "/v1/reset/1")["detail"]


def test_nothing_is_left_when_it_ends(served_alone: Run) -> None:
    served_alone.client.ok("POST", "/v1/lease", {"pid": os.getpid()})
    served_alone.serving.close()
    served_alone.serving.close()
    assert not [t for t in threading.enumerate() if "control" in t.name or "waitress" in t.name]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served_alone.client.port))


def test_a_server_that_is_lost_is_told(served_alone: Run) -> None:
    served_alone.client.ok("POST", "/v1/reset/1")
    served_alone.harness.server.stop()
    problem = served_alone.client.refused(503, "POST", "/v1/reset/1")
    assert problem["error"] in ("ServerLost", "LeaseLost")


def test_where_it_cannot_be_served_clients_are_told_at_once(
    served_alone: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An installation without waitress: the run goes on, and who asks is not left waiting."""
    monkeypatch.setitem(sys.modules, "waitress", None)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        served_alone.client("GET", "/healthz")
    assert "cannot be served" in caplog.text
    served_alone.add("goes on")
