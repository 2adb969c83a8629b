"""Planted bugs of marks, company, crashes and order: each search that is meant for them finds them within a few seeds.

What is patched is said in one function each, at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from diff_schemas import generate as generate_schema
from fix_reset_servers import Server
from test_company import Company
from test_crashes import Crashes, own_server
from test_next_view import NextView
from test_next_view import story as next_story
from test_stacks import Stacks
from test_stacks import story as stack_story

from harness.postgres import incarnation
from harness.reset.engine import ResetEngine
from harness.reset.marks import Marks
from harness.reset.sql import relations
from harness.reset.tracker import Tracker

__all__ = ["own_server"]


def drop_the_notes_of_a_popped_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies elsewhere than the state below a mark knows is not noted with it."""
    monkeypatch.setattr(Marks, "displaced", lambda *_: None)


def ask_for_files_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """File numbers are asked for once more after the look, and pass for pristine."""
    real = Tracker.remember_files

    def late(self: Tracker, files: dict[int, int]) -> None:
        real(self, {**files, **relations.files(self._connections.lease)})

    monkeypatch.setattr(Tracker, "remember_files", late)


def skip_the_check_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was made before the server's last start passes for good."""
    monkeypatch.setattr(incarnation, "emptied", lambda *_: False)
    monkeypatch.setattr(incarnation.Incarnation, "other", lambda *_: "")


def leave_free_space_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table's rows are written behind their old places, which a VACUUM then frees."""
    real = ResetEngine.reset

    def reset(self: ResetEngine, **options: Any) -> object:
        report = real(self, **options)
        # The next reset sees it, and puts it right.
        self._connections.lease.execute(
            "with gone as (delete from public.thousand returning *) insert into public.thousand select * from gone"
        )
        self._connections.lease.execute("vacuum public.thousand")
        return report

    monkeypatch.setattr(ResetEngine, "reset", reset)


def found(play: Callable[[int], object], seeds: Iterable[int]) -> bool:
    """Whether the search says that something differs."""
    return any(play(seed) for seed in seeds)


def test_a_popped_layer_whose_notes_are_dropped_is_found(
    reset_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Stacks(reset_server, generate_schema(5))
    try:
        assert not found(lambda seed: runner.play(stack_story(seed, runner.schema)), range(1, 10))
        drop_the_notes_of_a_popped_layer(monkeypatch)
        assert found(lambda seed: runner.play(stack_story(seed, runner.schema)), range(1, 80))
    finally:
        runner.close()


def test_files_that_are_asked_for_late_are_found(
    reset_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Company(reset_server, generate_schema(5))
    try:
        assert not found(runner.resets_in_company, range(1, 10))
        ask_for_files_late(monkeypatch)
        assert found(runner.resets_in_company, range(1, 80))
    finally:
        runner.close()


def test_a_start_that_is_not_looked_at_is_found(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = Crashes(own_server, generate_schema(5), tmp_path / "planted")
    try:
        assert not found(runner.round, range(1, 4))
        skip_the_check_of_the_start(monkeypatch)
        assert found(runner.round, range(1, 20))
    finally:
        runner.close()


def test_free_space_in_front_is_found(reset_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = NextView(reset_server, generate_schema(5))
    try:
        for steps, kept in (next_story(seed, runner.schema) for seed in range(1, 8)):
            assert runner.play(steps, kept=kept) == []
        leave_free_space_in_front(monkeypatch)
        stories = (next_story(seed, runner.schema) for seed in range(1, 80))
        seen = (runner.play(steps, kept=kept) for steps, kept in stories)
        assert any(line.startswith("thousand") for lines in seen for line in lines)
    finally:
        runner.close()
