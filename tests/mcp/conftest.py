"""The fixtures of :mod:`fix_cli`: a project whose command line the SDK's own client starts."""

from fix_cli import end_what_was_started, new_project

__all__ = ["end_what_was_started", "new_project"]
