"""A person comments on his own database, and our label goes with the comment that it was in: nothing else does."""

from __future__ import annotations

from collections.abc import Callable

from fix_cli import Project


def test_commands_know_the_database_by_its_name(new_project: Callable[..., Project]) -> None:
    mine = new_project("commented")
    url = mine.ok("up").strip()
    name = url.rpartition("/")[2]
    mine.ok("psql", "--", "-c", "insert into users (name) values ('mine')")
    mine.ok("psql", "--admin", "--", "-c", f"comment on database {name} is 'the shop'")
    assert mine.ok("up").strip() == url
    assert name in mine.ok("status")
    assert mine.ok("url").strip() == url
    assert "mine" in mine.ok("psql", "--", "-Atc", "select name from users")
    # It is not known what of the migrations it holds.
    for words in (["migrate"], ["reset"], ["mark"], ["fork", "other"]):
        done = mine.run(*words)
        assert done.returncode in (0, *range(120, 125)), (words, done.stderr)
        assert "this should not have happened" not in done.stderr, words
        assert "mine" in mine.ok("psql", "--", "-Atc", "select name from users") or words == ["reset"]
    assert mine.ok("up", "--fresh", "--yes").strip() == url
    assert mine.ok("psql", "--", "-Atc", "select count(*) from users").strip() == "0"
    assert name in mine.ok("status")
    mine.ok("down", "--all", "--yes")
