"""What a database's comment says: every comment of the versions before is read, and written again as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from harness.config.settings import DEFAULT_DATABASE
from harness.postgres import label
from harness.postgres.databases import Database
from harness.postgres.incarnation import UNKNOWN
from harness.postgres.label import Label
from harness.postgres.names import SANDBOX, Kind

F = "6c6362cf2a18619f959a60c524c18daa86eb2c0b18aeca4e5df3440ccd5a7175"

# Written by 0.x as it was when a comment was a dict; one by a later version, with a field that is not known here.
WRITTEN = {
    "template": 'pg-harness {"attributes":["grant connect on database {db} to \\"x\\""],"created":"2026-11-26T17:37:32+00:00","database":"default","fingerprint":"'
    + F
    + '","kind":"template","roles":["reader"],"seconds":0.222,"settled":true,"size":7922179,"sources":["sql:migrations"],"strategy":"file_copy","unlogged":"1795700440.586840","used":"2026-11-26T17:37:33+00:00","user_comment":"the shop\'s own\\nin two lines"}',
    "template without a comment": 'pg-harness {"attributes":[],"created":"2026-11-26T17:37:32+00:00","database":"default","fingerprint":"'
    + F
    + '","kind":"template","roles":[],"seconds":2.0,"settled":false,"size":7922179,"sources":[],"strategy":"wal_log","unlogged":"","used":"2026-11-26T17:37:32+00:00","user_comment":null}',
    "template of the first version": 'pg-harness {"attributes":[],"created":"2026-11-26T17:37:32+00:00","fingerprint":"'
    + F
    + '","kind":"template","size":1,"user_comment":null}',
    "lease": 'pg-harness {"created":"2026-11-26T17:37:33.031+00:00","database":"analytics","fingerprint":"'
    + F
    + '","kind":"lease","root":"/home/me/shop","run":"0000000000000000","worker":"2"}',
    "mark": 'pg-harness {"created":"2026-11-26T17:37:35.589+00:00","kind":"mark","name":"sp\\u00e4ter","number":1,"unlogged":"1795700440.586840"}',
    "baseline": 'pg-harness {"fingerprint":"' + F + '","kind":"baseline","unlogged":"1795700440.586840"}',
    "spare": 'pg-harness {"created":"2026-11-26T17:37:33.031+00:00","fingerprint":"'
    + F
    + '","kind":"spare","unlogged":""}',
    "kept": 'pg-harness {"created":"2026-11-26T17:37:40.001+00:00","database":"default","fingerprint":"'
    + F
    + '","kind":"kept","root":"/home/me/shop","run":"5f0c3d2e1b7a9988","why":"tests/test_a.py::test_it","worker":"gw2"}',
    "failed migration": 'pg-harness {"created":"2026-11-26T17:37:40+00:00","kind":"kept","why":"failed migration: sql:migrations 003.sql"}',
    "a later version": 'pg-harness {"fingerprint":"' + F + '","kind":"lease","shard":{"of":3},"worker":"1"}',
    "of another type": 'pg-harness {"kind":"template","number":"1","roles":[1],"settled":1,"size":"9","user_comment":null,"worker":7}',
    "empty": "pg-harness {}",
}


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("above", ["", "theirs\nin two lines\n"])
def test_what_was_written_is_written_again(what: str, above: str) -> None:
    comment = above + WRITTEN[what]
    own, found = label.split(comment)
    assert own == (above.rstrip("\n") or None)
    assert label.join(own, found) == comment
    assert found.written() == json.loads(WRITTEN[what].removeprefix("pg-harness "))


def test_a_template() -> None:
    _, found = label.split(WRITTEN["template"])
    assert found == Label(
        kind="template",
        fingerprint=F,
        database="default",
        created="2026-11-26T17:37:32+00:00",
        used="2026-11-26T17:37:33+00:00",
        unlogged="1795700440.586840",
        sources=("sql:migrations",),
        seconds=0.222,
        size=7922179,
        settled=True,
        roles=("reader",),
        attributes=('grant connect on database {db} to "x"',),
        user_comment="the shop's own\nin two lines",
        strategy="file_copy",
    )
    assert found.short_fingerprint == F[:16]
    assert found.created_at == datetime(2026, 11, 26, 17, 37, 32, tzinfo=UTC)
    assert found.used_at == datetime(2026, 11, 26, 17, 37, 33, tzinfo=UTC)
    # As `touch` does.
    again = label.join(None, replace(found, used="2026-12-01T00:00:00+00:00"))
    assert again == WRITTEN["template"].replace("2026-11-26T17:37:33", "2026-12-01T00:00:00")


def test_what_is_not_said_has_one_default() -> None:
    found = Label(kind="lease")
    assert found.name_in_settings == DEFAULT_DATABASE
    assert found.cloned_by == "file_copy"
    assert found.life == UNKNOWN
    assert Label(unlogged="").life == ""
    assert found.short_fingerprint == ""
    assert found.created_at == found.used_at == label.NEVER
    assert Label(created="yesterday").created_at == label.NEVER


@pytest.mark.parametrize(
    "comment",
    [None, "", "theirs", "theirs\nand more", "pg-harness {broken", "pg-harness of old", "pg-harness [1]"],
)
def test_what_is_no_label(comment: str | None) -> None:
    _, found = label.split(comment)
    assert not found
    assert found == Label()


def test_a_comment_of_the_users_that_looks_like_ours_stays_theirs() -> None:
    assert label.split("pg-harness {broken") == ("pg-harness {broken", Label())


def test_a_value_of_another_type_is_as_good_as_none() -> None:
    _, found = label.split(WRITTEN["of another type"])
    assert found
    assert (found.worker, found.number, found.roles, found.settled, found.size) == (None,) * 5


def test_a_database_by_its_name() -> None:
    lease = Database(f"pgh_0123456789_l_{SANDBOX}_2_0", 1, False, True, "app", 0)
    assert (lease.kind, lease.owner, lease.sandbox, lease.marked_lease) == (Kind.LEASE, SANDBOX, True, "")
    mark = Database(f"pgh_0123456789_m_{SANDBOX}_2_0_1", 1, False, True, "app", 0)
    assert (mark.kind, mark.marked_lease) == (Kind.MARK, lease.name)
    other = Database("shop", 1, False, True, "app", 0)
    assert (other.kind, other.owner, other.sandbox, other.marked_lease) == (None, "", False, "")
    assert not other.label


def test_labels_are_values() -> None:
    with pytest.raises(AttributeError):
        Label().kind = "lease"  # type: ignore[misc]


def test_what_a_terminal_obeys_is_told_as_its_escape() -> None:
    _, found = label.split('pg-harness {"kind":"mark","name":"m\\u001b[31m\\u202ex","worker":"a\\nb"}')
    assert (found.name, found.worker) == (r"m\x1b[31m\u202ex", r"a\nb")
