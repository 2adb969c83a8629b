"""When Python looks for garbage: seldom in a command's own process, as ever in a program that calls a command."""

from __future__ import annotations

import subprocess
import sys

from harness.cli.garbage import SELDOM


def thresholds(code: str, *words: str) -> tuple[list[str], str]:
    """The first threshold where the code says `tell()`, and whether all objects were looked through as the process ended."""
    prelude = (
        "import gc, sys\n"
        "def tell(): print(gc.get_threshold()[0])\n"
        "def look(phase, info):\n"
        "    if (phase, info['generation']) == ('start', 2): sys.stderr.write('all of it')\n"
        "tell()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *words], text=True, timeout=60, capture_output=True, check=True
    )
    return done.stdout.split(), done.stderr


def test_a_program_that_calls_a_command_keeps_its_own() -> None:
    said, ended = thresholds(
        "gc.set_threshold(300)\n"
        "from harness.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: tell()\n"
        "gc.callbacks.append(look)\n"
    )
    assert said[-1] == "300"
    assert ended == "all of it"


def test_a_process_of_its_own_looks_seldom_and_not_as_it_ends() -> None:
    said, ended = thresholds(
        "from harness.cli import main\ntry: main()\nexcept SystemExit: tell()\ngc.callbacks.append(look)\n",
        "--version",
    )
    assert said[-1] == str(SELDOM)
    assert ended == ""


def test_what_is_measured_sees_pythons_own() -> None:
    said, _ = thresholds(
        "from harness.bench import reset\n"
        "from harness.cli import main\n"
        "reset.measure = lambda options: tell() or 0\n"
        "assert main() == 0\n"
        "tell()\n",
        "bench", "reset",
    )  # fmt: skip
    usual, measured, after = said
    assert measured == usual
    assert after == str(SELDOM)
