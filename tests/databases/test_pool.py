"""Spares are ready before they are asked for; drops happen behind the caller's back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_servers import OWNER

from harness.databases.clones import Claim, Clones
from harness.databases.pool import Drop, Filler, Make, plan
from harness.databases.template import Template
from harness.postgres import databases, names
from harness.postgres.admin import Link


@pytest.mark.parametrize(
    ("spares", "wanted", "retired", "expected"),
    [
        ({}, 1, [], None),
        ({"a": 1}, 1, [], None),
        ({"a": 0}, 1, ["x"], Make("a")),
        ({"a": 1, "b": 0}, 2, [], Make("b")),
        ({"a": 2}, 2, ["x", "y"], Drop("x")),
        ({"a": 3}, 2, [], None),
    ],
)
def test_the_plan(
    spares: dict[str, int], wanted: int, retired: list[str], expected: Make | Drop | None
) -> None:
    assert plan(spares, wanted, retired) == expected


@pytest.fixture
def filler(link: Link, checkout: str, made: Template) -> Iterator[Filler]:
    filler = Filler(Clones(link.another(), checkout, OWNER, connections=5), [made], wanted=2)
    yield filler
    filler.close()


def test_spares_come_back_and_retired_databases_go(
    filler: Filler, clones: Clones, made: Template, link: Link
) -> None:
    claim = Claim(names.run_id(), "1")
    assert filler.idle(30)
    assert len(clones.spares(made)) == 2
    assert repr(filler) == "<Filler 1 templates, 2 wanted | 0 to drop>"
    clones.claim(made, claim)
    retired = clones.replace(made, claim)
    assert databases.find(link.session, retired) is not None
    filler.retire(retired)
    assert filler.idle(30)
    assert databases.find(link.session, retired) is None
    assert len(clones.spares(made)) == 2
    filler.close()
    assert repr(filler).endswith("| closed>")
    assert filler.failure is None


def test_a_failure_is_kept_and_nobody_hangs(link: Link, checkout: str, made: Template) -> None:
    filler = Filler(Clones(link.another(), checkout, OWNER, connections=5), [made], wanted=1)
    assert filler.idle(30)
    databases.drop(link.session, made.name, checkout)
    for spare in Clones(link, checkout, OWNER, connections=5).spares(made):
        databases.drop(link.session, spare, checkout)
    filler.retire("")
    assert filler.idle(30)
    assert "the template" in str(filler.failure)
    filler.close()
