import inspect
import pickle
import re
from pathlib import Path

import pytest

from harness import errors
from harness.errors import HarnessError

EXAMPLES: list[HarnessError] = [
    errors.HarnessError("x"),
    errors.ConfigError("x", key="k", origin="o", value="v"),
    errors.BackendError("x"),
    errors.BackendUnavailable("x", checked=["docker: no"], remedies=["start it"]),
    errors.ServerStartError("x", log_tail="FATAL: no space"),
    errors.ServerLost("x"),
    errors.ServerRefused("x", sqlstate="53100", statement="create"),
    errors.MigrationError("x", source="sql:a", step="1.sql", database="d"),
    errors.TemplateBusy("x", sessions=["pid 1"]),
    errors.LeaseError("x"),
    errors.LeaseClosed("x"),
    errors.LeaseLost("x"),
    errors.LeaseInUse("x", sessions=["pid 1"]),
    errors.ReplicaBehind("x", behind=80),
    errors.PoolTimeout("x"),
]


def test_every_class_has_an_example() -> None:
    classes = {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, HarnessError)}
    assert classes == {type(e) for e in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_errors_cross_processes_whole(error: HarnessError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__
    assert str(copy) == str(error)
    assert 120 <= error.exit_code <= 124


def test_the_hierarchy_is_the_one_that_the_docstring_draws() -> None:
    drawn = errors.__doc__ or ""
    for error in EXAMPLES:
        line = next(line for line in drawn.splitlines() if f"{type(error).__name__} " in line)
        assert str(error.exit_code) in line or type(error) is HarnessError


def test_a_pool_timeout_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        raise errors.PoolTimeout("x")


def test_lists_are_part_of_the_text() -> None:
    text = str(EXAMPLES[3])
    assert "What was tried:\n  - docker: no" in text
    assert "What to do:\n  - start it" in text
    assert "FATAL: no space" in str(EXAMPLES[4])


def test_notes_are_part_of_the_full_text_and_cross_processes() -> None:
    error = errors.MigrationError("it failed", source="sql:a")
    assert error.full_text == "it failed"
    error.add_note("the database is kept")
    error.add_note("look at it")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "it failed"
    assert copy.full_text == "it failed\nthe database is kept\nlook at it"


def test_no_text_is_changed_afterwards() -> None:
    root = Path(errors.__file__).parent
    changed = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\.message \+?= ", line) and line.strip() != "self.message = message"
    ]
    assert not changed
