"""The documents name what there is: each command and option exists, each message of the troubleshooting page is one of ours."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest

from harness.cli.parser import VERBS, verb

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md"), ROOT / "compose" / "README.md"])  # fmt: skip

_CODE = re.compile(r"```.*?```|``[^`]+``|`[^`]+`", re.DOTALL)
_CALL = re.compile(r"(?:pg-harness|python -m harness) (?!\[)((?:-q |-v )*)([a-z][a-z-]*)([^\n`|&;)\"]*)")
_OPTION = re.compile(r"(?<=\s)(--?[a-z][a-z-]*)")


@cache
def options(name: str) -> set[str]:
    found = verb(name)
    return {option for param in found.params if isinstance(param, click.Option) for option in param.opts} | {
        "--help",
        "-h",
    }


def calls(page: Path) -> list[tuple[str, str]]:
    """Verb and the words behind it, of each call of ours in code."""
    text = "\n".join(_CODE.findall(page.read_text()))
    # `git clone … pg-harness && …` and files of that name are no calls.
    return [(found[2], found[3]) for found in _CALL.finditer(text.replace("\\\n", " "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_calls_is_there(page: Path) -> None:
    for name, rest in calls(page):
        assert name in VERBS, f"{page.name}: pg-harness {name}{rest}"
        own = rest.partition(" -- ")[0].partition("$(")[0]
        for option in _OPTION.findall(own):
            assert option in options(name), f"{page.name}: pg-harness {name}{rest}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_leads_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


_ELSEWHERE = re.compile(r"DOCKER_HOST(?:: |=)tcp://(?!localhost|127\.)")
_BLOCK = re.compile(r"^```.*?^```|^\|[^\n]*$", re.MULTILINE | re.DOTALL)
"""What stands by itself: code, or a row of a table."""


def test_who_reaches_a_daemon_by_tcp_is_told_to_install_what_makes_certificates() -> None:
    """Its servers' ports are open there, for TLS alone: without that library none is started."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makes = {name for name, needs in extras.items() if any(need.startswith("cryptography") for need in needs)}
    assert makes
    found = [
        (page, block)
        for page in PAGES
        for block in _BLOCK.findall(page.read_text())
        if _ELSEWHERE.search(block)
    ]
    assert {page.name for page, _ in found} >= {"ci.md"}
    for page, block in found:
        # Each command that installs us there; a row of a table names one.
        installs = [line for line in block.splitlines() if "pip install" in line and "pg-harness" in line]
        assert installs, f"{page.name}: {block}"
        for line in installs:
            brought = {
                name for names in re.findall(r"pg-harness\[([a-z,]+)\]", line) for name in names.split(",")
            }
            assert brought & makes, f"{page.name}: {line}"


def test_calls_were_found() -> None:
    assert sum(len(calls(page)) for page in PAGES) > 150


@cache
def texts() -> str:
    """All that the code says: its strings, one a line, with a mark where values are put in."""
    found = []
    for path in [*(ROOT / "harness").rglob("*.py"), ROOT / "pg_harness_pytest.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%\(?\w*\)?[sdgf.0-9]*[sdf]", "…", node.value))
    found += [path.read_text() for path in (ROOT / "clients" / "js").glob("*.js")]
    return "\n".join(found)


HEADINGS = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_message_of_ours(heading: str) -> None:
    parts = [part.strip(" .:()") for part in re.split("…|: ", heading)]
    telling = [part for part in parts if len(part) > 5]
    assert telling, heading
    for part in telling:
        assert part in texts(), part
