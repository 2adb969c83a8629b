"""The label of a database of ours: what the last line of its comment says of it, as JSON.

A comment lives in a shared catalog: it is seen from the maintenance database, follows a rename, and goes with the
database. A comment that migrations wrote themselves stays above our line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from harness.postgres.incarnation import UNKNOWN

WORD = "pg-harness "
"""What our line begins with."""

NEVER = datetime.fromtimestamp(0, UTC)
"""The time of what has none, or none that can be read."""


@dataclass(frozen=True)
class Label:
    """What is written of a database. A field that is None is not written; none of them all is no label, which is false.

    Attributes:
        kind: ``"template"``, ``"spare"``, ``"baseline"``, ``"lease"``, ``"mark"`` or ``"kept"``.
        fingerprint: of the migrations that it was made from, 64 hex digits.
        database: its name in the settings; see :attr:`name_in_settings`.
        run: of a lease and what was kept of it: sixteen hex digits.
        worker: likewise, for instance ``"gw2"``.
        root: likewise: the path of the checkout.
        created: when it was made, as ISO 8601; see :attr:`created_at`.
        used: of a template: when it was last used, likewise.
        claimed: of a lease: the life of the server in which it was, see :data:`harness.postgres.incarnation.LIFE`; earlier
            versions wrote none.
        unlogged: of which life of the server its unlogged tables are, see :func:`harness.postgres.incarnation.label`;
            earlier versions wrote none.
        number: of a mark: its place in the stack, from 1.
        name: of a mark: what the person called it.
        why: of what was kept: why, for people.
        sources: of a template: the migrations, as in the settings.
        applied: of a template, and of a person's databases and their marks: what of the migrations is in it, see
            :mod:`harness.databases.applied`; earlier versions wrote none.
        seconds: of a template: what building it took.
        size: of a template: bytes.
        settled: of a template: whether no sequence in it is logged ahead.
        roles: of a template: roles of the server that its migrations made.
        attributes: of a template: statements of :class:`harness.postgres.databases.Attributes`.
        user_comment: of a template: the comment that its migrations wrote. A template without one says ``null``.
        strategy: of a template: how it is cloned; see :attr:`cloned_by`.
        sealed: of a template: the transaction that wrote its row of ``pg_database`` last: whoever enters a template has to
            write there first.
        others: what else is written, as it is: of other versions, or of another type than ours. It is kept.
    """

    kind: str | None = None
    fingerprint: str | None = None
    database: str | None = None
    run: str | None = None
    worker: str | None = None
    root: str | None = None
    created: str | None = None
    used: str | None = None
    claimed: str | None = None
    unlogged: str | None = None
    number: int | None = None
    name: str | None = None
    why: str | None = None
    sources: tuple[str, ...] | None = None
    applied: tuple[str, ...] | None = None
    seconds: float | None = None
    size: int | None = None
    settled: bool | None = None
    roles: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None
    user_comment: str | None = None
    strategy: str | None = None
    sealed: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Label:
        """From the JSON object of a comment."""
        known: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for key, value in written.items():
            if key == "user_comment" and value is None:
                continue
            if (found := _read(key, value)) is not None:
                known[key] = found
            else:
                others[key] = value
        return cls(**known, others=others)

    def written(self) -> dict[str, Any]:
        """The JSON object that a comment holds."""
        result = dict(self.others)
        for key in _KEYS:
            value = getattr(self, key)
            if value is not None:
                result[key] = list(value) if isinstance(value, tuple) else value
        if self.kind == "template":
            result.setdefault("user_comment", None)
        return result

    def __bool__(self) -> bool:
        return self != _NONE

    @property
    def name_in_settings(self) -> str:
        """Which of the configured databases it is, or is a copy of."""
        # config.settings.DEFAULT_DATABASE, which is of another room.
        return self.database if self.database is not None else "default"

    @property
    def short_fingerprint(self) -> str:
        """As in names of databases: sixteen hex digits; empty where it says none."""
        return (self.fingerprint or "")[:16]

    @property
    def cloned_by(self) -> str:
        """How a template is cloned: ``"file_copy"`` or ``"wal_log"``."""
        return self.strategy if self.strategy is not None else "file_copy"

    @property
    def life(self) -> str:
        """:attr:`unlogged`, or what stands for a life that is not known."""
        return self.unlogged if self.unlogged is not None else UNKNOWN

    @property
    def created_at(self) -> datetime:
        """When it was made; :data:`NEVER` where that cannot be read."""
        return _time(self.created)

    @property
    def used_at(self) -> datetime:
        """When it was last used, or made."""
        return max(_time(self.used), self.created_at)


_JSON: Mapping[str, tuple[type, ...]] = {
    "str | None": (str,),
    "tuple[str, ...] | None": (list,),
    "int | None": (int,),
    "float | None": (int, float),
    "bool | None": (bool,),
}

# By the annotations, which are text here (PEP 563): a field is declared once.
_KEYS = {f.name: _JSON[str(f.type)] for f in fields(Label) if f.name != "others"}


_SHOWN = {"worker", "name", "why", "created"}
"""Texts that people see. Whoever owns a database may write its comment: what a terminal would obey is told as its escape."""


def _read(key: str, value: Any) -> Any:
    """The value of a field; None where it is of another type."""
    # By `type`: to `isinstance` a bool is an int.
    if type(value) not in _KEYS.get(key, ()):
        return None
    if key in _SHOWN:
        return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in value)
    if isinstance(value, list):
        return tuple(value) if all(isinstance(item, str) for item in value) else None
    return value


_NONE = Label()


def _time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return NEVER


def split(comment: str | None) -> tuple[str | None, Label]:
    """The user's own comment, and our label, of a database's comment."""
    if not comment:
        return None, _NONE
    head, _, last = comment.rpartition("\n")
    if not last.startswith(WORD):
        return comment, _NONE
    try:
        written = json.loads(last.removeprefix(WORD))
    except ValueError:
        return comment, _NONE
    return head or None, Label.of(written) if isinstance(written, dict) else _NONE


def join(comment: str | None, label: Label) -> str:
    """The comment of a database: our label below the user's own."""
    line = WORD + json.dumps(label.written(), separators=(",", ":"), sort_keys=True)
    return f"{comment}\n{line}" if comment else line
