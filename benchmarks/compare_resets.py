#!/usr/bin/env python3
"""Two checkouts side by side: the rows of ``bench reset`` at both, and of each row new / old.

python benchmarks/compare_resets.py OLD NEW [--times N] [--rounds N] [--version N] [--engine E] [--quick] [--json FILE]

OLD and NEW are folders with a ``harness``. The code that measures is always the one beside this file, so rows that OLD
has never heard of are measured there too; what cannot be done there is "-". The runs alternate, and who goes first
does so too. Both use the interpreter that runs this, or, with --environments, each its own .venv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEASURING = Path(__file__).resolve().parents[1] / "harness" / "bench"

OLDER = """
import importlib, sys
for new in ("", ".session", ".databases"):
    try:
        importlib.import_module("harness.postgres" + new)
    except ModuleNotFoundError:
        sys.modules["harness.postgres" + new] = importlib.import_module("harness.catalog" + new)
"""
"""Before the packages were cut by rooms, some modules that measuring imports had other names."""

RUN = (
    "import sys; from harness.bench.reset import Options, measure; sys.exit(measure(Options(**{options!r})))"
)

FIGURES = (("p50", "p50"), ("client_cpu", "client"), ("server_cpu", "server"), ("peak_mb", "memory"))
"""Key of a row, and its heading."""

Rows = dict[str, dict[str, Any]]


def run(folder: Path, python: str, options: dict[str, Any]) -> dict[str, Rows]:
    """Title → name → row, of one run of one checkout."""
    with tempfile.TemporaryDirectory() as elsewhere:
        target = Path(elsewhere) / "figures.json"
        package = Path(elsewhere) / "harness"
        # The package of that checkout, measured by the code of this one.
        shutil.copytree(folder / "harness", package, ignore=shutil.ignore_patterns("bench", "__pycache__"))
        shutil.copytree(MEASURING, package / "bench")
        (package / "bench" / "__init__.py").write_text(OLDER)
        # The plugin's entry module, for the suites. Where it is missing, the installed one is taken.
        for plugin in folder.glob("pg_harness_pytest.py"):
            shutil.copy(plugin, elsewhere)
        done = subprocess.run(
            [python, "-c", RUN.format(options={**options, "json": str(target)})],
            cwd=elsewhere, text=True, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": elsewhere},
        )  # fmt: skip
        if not target.exists():
            sys.exit(f"{folder}: the benchmark did not end well\n{done.stderr[-3000:]}")
        found = json.loads(target.read_text())
    return {table["title"]: {key_of(row): row for row in table["rows"]} for table in found["tables"]}


def key_of(row: dict[str, Any]) -> str:
    """Its name, which the engines share, and the engine where it is not the one that older checkouts have."""
    return f"{row['name']}, by rewind" if row.get("engine") == "rewind" else str(row["name"])


def ratios(old: list[Rows], new: list[Rows], name: str, key: str) -> list[float]:
    """New / old of one figure, pair by pair, lowest first; empty where one of them has none."""
    found = []
    for before, after in zip(old, new, strict=True):
        a, b = (rows.get(name, {}).get(key) for rows in (before, after))
        # Differences of small figures may fall below nothing: they make no ratio.
        if a is not None and b is not None and a > 0 and b > 0:
            found.append(b / a)
    return sorted(found)


def spread(found: list[float]) -> str:
    """Median, and lowest to highest."""
    if not found:
        return f"{'-':>6}{'':15}"
    return f"{statistics.median(found):6.2f} ({found[0]:.2f} to {found[-1]:.2f})".ljust(21)


def middle(rows: list[Rows], name: str, key: str) -> float | None:
    """The median over the runs."""
    found = [value for one in rows if (value := one.get(name, {}).get(key)) is not None]
    return statistics.median(found) if found else None


def tell(title: str, old: list[Rows], new: list[Rows]) -> dict[str, Any]:
    """Print one version's table; return it for programs."""
    print(f"\n{title}; {len(new)} runs of each in turn; new / old: median (lowest to highest)")
    heads = "".join(f"{heading:<22}" for _, heading in FIGURES)
    print(f"{'':<58} {'old ms':>9} {'new ms':>9}   {heads}".rstrip())
    told: dict[str, Any] = {}
    for name in dict.fromkeys(name for rows in (*new, *old) for name in rows):
        before, after = middle(old, name, "p50"), middle(new, name, "p50")
        found = {key: ratios(old, new, name, key) for key, _ in FIGURES}
        shown = " ".join(spread(found[key]) for key, _ in FIGURES)
        sides = " ".join(f"{'-':>9}" if value is None else f"{value:9.2f}" for value in (before, after))
        print(f"{name:<58} {sides}   {shown}".rstrip(), flush=True)
        told[name] = {"old": before, "new": after, "ratios": found}
    return told


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--times", type=int, default=5, help="runs of each; default: 5")
    parser.add_argument(
        "--rounds", type=int, default=100, help="rounds of each row in each run; default: 100"
    )
    parser.add_argument("--workers", type=int, default=8, help="workers of the crowded rows; default: 8")
    parser.add_argument("--version", action="append", help="major version of PostgreSQL; may be repeated")
    parser.add_argument(
        "--engine", choices=("both", "rows", "rewind"), default="both", help="of the resets; default: both"
    )
    parser.add_argument(
        "--quick", action="store_true", help="without crowded workers, suites, a million rows"
    )
    parser.add_argument(
        "--environments", action="store_true", help="run each with the .venv in its own folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also all figures of all runs, into a file")
    given = parser.parse_args()
    options = {
        "versions": given.version or (),
        "rounds": given.rounds,
        "workers": given.workers,
        "quick": given.quick,
        "engine": given.engine,
    }
    sides = {"old": given.old.resolve(), "new": given.new.resolve()}
    pythons = {
        side: str(folder / ".venv" / "bin" / "python") if given.environments else sys.executable
        for side, folder in sides.items()
    }
    runs: dict[str, list[dict[str, Rows]]] = {"old": [], "new": []}
    for number in range(given.times):
        for side in ("old", "new") if number % 2 == 0 else ("new", "old"):
            print(f"run {number + 1} of {given.times}: {side}", file=sys.stderr, flush=True)
            runs[side].append(run(sides[side], pythons[side], options))
    told = {
        title: tell(title, *([one.get(title, {}) for one in runs[side]] for side in ("old", "new")))
        for title in runs["new"][0]
    }
    if given.json:
        given.json.write_text(json.dumps({"compared": told, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
