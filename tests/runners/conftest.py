"""The fixtures of :mod:`fix_cli` and :mod:`fix_examples`, for this folder only."""

from fix_cli import end_what_was_started, new_project
from fix_examples import example, javascript

__all__ = ["end_what_was_started", "example", "javascript", "new_project"]
