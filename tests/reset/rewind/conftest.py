"""The command line, as its own tests call it."""

from fix_cli import end_what_was_started, new_project

__all__ = ["end_what_was_started", "new_project"]
