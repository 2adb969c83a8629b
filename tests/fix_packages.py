"""Packages that add something to pg-harness, as pip leaves them."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, code: str, *, name: str, group: str, word: str, attribute: str) -> None:
    """What pip leaves of a package of one module with one entry point.

    Args:
        site: where it is put; a folder of ``PYTHONPATH``.
        name: of the module, and of the package with ``-`` for ``_``; its version is 1.2.
        group: of the entry point, for instance ``pg_harness.migrations``.
        attribute: what of the module it names.
    """
    info = site / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{word} = {name}:{attribute}\n")
