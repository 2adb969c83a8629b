"""The fixtures of :mod:`fix_cli`, for this folder only: one of them holds for every test."""

from fix_cli import end_what_was_started, interrupt, new_project, project
from fix_maven import maven
from fix_node import new_javascript, node_modules

__all__ = [
    "end_what_was_started",
    "interrupt",
    "maven",
    "new_javascript",
    "new_project",
    "node_modules",
    "project",
]
