"""What a person allows an agent beyond databases of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from harness.errors import ConfigError, closest

READ: Final = "read"
CHANGE: Final = "change"
EXTERNAL: Final = "external"
SUPERUSER: Final = "superuser"

WORDS = {
    READ: "read the developer's databases, those of `up`: list, describe, changes, and SQL that can write nothing",
    CHANGE: "read and change them: SQL, mark, reset, and forks of them; never drop one",
    EXTERNAL: "use the server of `server_url`, which somebody else runs, for own databases",
    SUPERUSER: "run SQL as the application's role although it is a superuser, whom nothing confines",
}
"""Word of ``--allow`` → what it allows."""


def parse(said: Iterable[str]) -> frozenset[str]:
    """The words of ``--allow``, several of which may stand in one, with commas between.

    Raises:
        ConfigError: one is no such word.
    """
    words = [word.strip() for text in said for word in text.split(",") if word.strip()]
    for word in words:
        if word not in WORDS:
            near = closest(word, WORDS)
            hint = f"; did you mean {near!r}?" if near else ""
            known = "\n".join(f"  {name:<10} {what}" for name, what in WORDS.items())
            raise ConfigError(
                f"--allow knows no {word!r}{hint}. There are:\n{known}", key="allow", value=word
            )
    return frozenset(words) | ({READ} if CHANGE in words else frozenset())
