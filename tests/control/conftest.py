"""The fixtures of :mod:`fix_control`, for this folder only."""

from fix_control import control_project, leased, served, served_alone

__all__ = ["control_project", "leased", "served", "served_alone"]
