"""The fixtures of :mod:`fix_plugin`, for this folder only."""

from fix_plugin import folder, place

__all__ = ["folder", "place"]
