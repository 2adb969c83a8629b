"""The files that a person's pristine databases are noted in: what is not certain is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.reset.watermark import Watermark
from harness.sandbox.watermarks import Provenance, WatermarkStore

LIFE = Provenance("server", "100.5", "101.25", 7)
NOTE = Watermark("0/16B3740", 16400, 10, (("database", "", "10|6"), ("setting", "role:10", "{a=b}")))
CARRIED = Watermark(
    NOTE.position,
    NOTE.database,
    NOTE.role,
    NOTE.shared,
    own=(4294967300,),
    files={16401: 16500},
    touched={"pg_class": frozenset({1, 2})},
    places={16401: {(0, 1): ((3, 4), 800), (2, 9): ((3, 5), 800)}},
)


@pytest.mark.parametrize("note", [NOTE, CARRIED], ids=["clone", "reset"])
def test_what_is_written_is_read(tmp_path: Path, note: Watermark) -> None:
    notes = WatermarkStore(tmp_path / "folder")
    notes.write("one", LIFE, note)
    assert notes.read("one", 16400, LIFE) == (note, "")
    (path,) = notes.folder.iterdir()
    assert (path.name, path.stat().st_mode & 0o777) == ("one.json", 0o600)
    assert notes.folder.stat().st_mode & 0o077 == 0
    notes.forget("one")
    notes.forget("one")
    assert notes.read("one", 16400, LIFE) == (None, "its pristine state was not noted")


@pytest.mark.parametrize(
    ("life", "oid", "why"),
    [
        (replace(LIFE, started="100.6"), 16400, "restarted"),
        (replace(LIFE, server="another"), 16400, "restarted"),
        (replace(LIFE, revived="101.26"), 16400, "crashed"),
        (replace(LIFE, revived="", started=""), 16400, "crashed"),
        (replace(LIFE, source=8), 16400, "template was built again"),
        (LIFE, 16401, "made again"),
    ],
)
def test_another_life_or_database_is_noticed(tmp_path: Path, life: Provenance, oid: int, why: str) -> None:
    notes = WatermarkStore(tmp_path)
    notes.write("one", LIFE, CARRIED)
    note, said = notes.read("one", oid, life)
    assert note is None
    assert why in said


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"life": None},
        {"life": {"server": "server"}},
        {"note": None},
        {"position": None},
        {"position": "0/0'"},
        {"database": None},
        {"shared": [["one"]]},
        {"carried": {}},
        {"own": ["x"]},
        {"places": {"16401": [[1, 2, 3]]}},
    ],
    ids=str,
)
def test_another_form_is_not_believed(tmp_path: Path, damage: dict[str, Any]) -> None:
    notes = WatermarkStore(tmp_path)
    notes.write("one", LIFE, CARRIED)
    path = tmp_path / "one.json"
    content = json.loads(path.read_text())
    for part in (content, content["note"], content["note"]["carried"]):
        part.update({key: value for key, value in damage.items() if key in part})
    path.write_text(json.dumps(content))
    assert notes.read("one", 16400, LIFE) == (None, "the note of its pristine state cannot be read")


OLD_FILE = (
    '{"format":1,"life":{"server":"server","started":"100.5","revived":"101.25","source":7},"note":{"position":'
    '"0/16B3740","database":16400,"role":10,"shared":[["database","","10|6"],["setting","role:10","{a=b}"]],'
    '"carried":%s}}'
)


@pytest.mark.parametrize(
    ("carried", "found"),
    [
        ("null", NOTE),
        ('{"own":[],"files":[],"touched":{},"places":{}}', NOTE),
        (
            """{"own":[4294967300],"files":[[16401,16500]],"touched":{"pg_class":[1,2]},
            "places":{"16401":[[0,1,3,4,800],[2,9,3,5,800]]}}""",
            CARRIED,
        ),
    ],
    ids=["clone", "a reset that found nothing", "reset"],
)
def test_a_file_of_an_older_version_is_read(tmp_path: Path, carried: str, found: Watermark) -> None:
    (tmp_path / "one.json").write_text(OLD_FILE % carried)
    assert WatermarkStore(tmp_path).read("one", 16400, LIFE) == (found, "")


def test_an_older_version_could_read_what_is_written(tmp_path: Path) -> None:
    for note, carried in ((NOTE, "null"), (CARRIED, json.dumps(CARRIED.carried(), separators=(",", ":")))):
        WatermarkStore(tmp_path).write("one", LIFE, note)
        assert (tmp_path / "one.json").read_text() == OLD_FILE % carried


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"null", b"\xff"])
def test_no_json_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.json").write_bytes(content)
    assert WatermarkStore(tmp_path).read("one", 16400, LIFE) == (
        None,
        "the note of its pristine state cannot be read",
    )


def test_a_folder_that_cannot_be_written_to_costs_a_clone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notes = WatermarkStore(tmp_path / "file" / "folder")
    notes.write("one", LIFE, NOTE)
    assert notes.read("one", 16400, LIFE)[0] is None
    notes.forget("one")
    notes.forget_all()
