"""Takes secrets out of a text that is meant for others: those that are known by value, and what looks like one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from harness.postgres.session import without_secrets

MASK = "***"

_NAMES = "(?:password|passwd|passphrase|pwd|secret|token|api_?key|private_?key|access_?key|credentials?|authorization)"
_SECRET_NAME = re.compile(rf"{_NAMES}|(?:^|_)(?:pass|key|auth)(?:_|$)", re.IGNORECASE)
_NO_SECRETS = frozenset({"PWD", "OLDPWD", "SSH_AUTH_SOCK", "PGPASSFILE"})
"""Folders and files, whatever their names sound like."""

_IN_URL = re.compile(r"(?<=://)([^\s:/@'\"]*):([^\s'\"]+)@")
_ASSIGNED = re.compile(
    rf"(\b\w*{_NAMES}\w*[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&)}}\]]+)", re.IGNORECASE
)
_HEX = re.compile(r"\b[0-9a-f]{32,}\b", re.IGNORECASE)
"""As our own passwords are, and digests: nobody misses those in a report."""

_ORDINARY = frozenset(
    {"postgres", "postgresql", "pg-harness", "harness", "true", "false", "yes", "none", "default"}
)
"""Words that a report is full of: as a password, one of them is no secret."""

_SHORTEST = 4
"""Characters of a known secret: shorter ones are in every text, and are taken out where they stand as one only."""

_LITERAL = re.compile(r"'(?:[^']|'')*'")
_KEY = re.compile(r"(\)=)\([^)]*\)|((?:row )contains )\(.*\)")


class Scrubber:
    """Removes secrets.

    Args:
        known: values that must not be seen in any form.
    """

    def __init__(self, known: Iterable[str]) -> None:
        forms = {
            form
            for value in known
            if len(value) >= _SHORTEST and value.lower() not in _ORDINARY
            for form in (value, quote(value, safe=""), unquote(value), json.dumps(value)[1:-1])
        }
        # The longest first: one may be a part of another.
        self._known = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without them."""
        for value in self._known:
            text = text.replace(value, MASK)
        text = _IN_URL.sub(rf"\1:{MASK}@", without_secrets(text))
        return _HEX.sub(MASK, _ASSIGNED.sub(rf"\1{MASK}", text))


def logged(line: str) -> str:
    """A line of a server's log without the application's data: no literals of statements, no keys and rows of details."""
    if re.search(r"\b(STATEMENT|QUERY|CONTEXT|DETAIL|ERROR|LOG):", line) or line.startswith("\t"):
        line = _KEY.sub(r"\1\2(…)", line)
    if re.search(r"\b(STATEMENT|QUERY|CONTEXT):|statement:|execute ", line) or line.startswith("\t"):
        line = _LITERAL.sub("'…'", line)
    return line


def of_environment(environ: Mapping[str, str]) -> Iterator[str]:
    """Values of variables that are secrets by their name, and passwords of URLs in all others."""
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and name not in _NO_SECRETS:
            yield value
        yield from of_text(value)


def of_text(text: str) -> Iterator[str]:
    """Passwords of the URLs in a text."""
    yield from (found[1] for found in _IN_URL.findall(text))


def of_files(folder: Path) -> Iterator[str]:
    """Passwords in the state files of a folder."""
    for path in folder.glob("*.json"):
        try:
            yield from _passwords(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue


def _passwords(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, str) and _SECRET_NAME.search(str(name)):
                yield value
            yield from _passwords(value)
    elif isinstance(content, list):
        for value in content:
            yield from _passwords(value)
    elif isinstance(content, str):
        yield from of_text(content)
