"""What other packages add under a word of their own: named by an entry point, imported when the word is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from harness.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

K = TypeVar("K")


class Extensions(Generic[K]):
    """The entries of one group: ours, and those of installed packages.

    Args:
        group: of the entry points.
        ours: word → entry, those that come with us. No package may take one of these words.
        kind: what each entry is, a class.
        noun: what an entry is called in messages, for instance ``"kind of migrations"``.
        key: the setting in which the words stand.
    """

    def __init__(self, group: str, ours: Mapping[str, K], kind: type[K], *, noun: str, key: str) -> None:
        self._group = group
        self._ours = ours
        self._kind = kind
        self._noun = noun
        self._key = key
        self._imported = cache(self._import)

    def find(self, word: str) -> K | None:
        """The entry of a word; None where nobody has it.

        Packages are asked for a word that is not ours only: that reads what every installed package says of itself.

        Raises:
            ConfigError: a package's entry cannot be imported, or two have the same word.
        """
        if word in self._ours:
            return self._ours[word]
        return self._imported(word) if word in self._installed else None

    def all(self) -> Mapping[str, K]:
        """Word → entry, ours first.

        Raises:
            ConfigError: as :meth:`find`.
        """
        return {**self._ours, **{word: self._imported(word) for word in self._installed}}

    def packages(self) -> Mapping[str, str]:
        """Word → the package that adds it, for people; ours are not in it."""
        return {
            word: f"{point.dist.name} {point.dist.version}" if point.dist else point.value
            for word, point in self._installed.items()
        }

    @cached_property
    def _installed(self) -> Mapping[str, EntryPoint]:
        # Lazy: it takes longer to import than all of ours that is needed for a word of ours.
        from importlib.metadata import entry_points

        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            other = found.get(point.name)
            if other is not None or point.name in self._ours:
                owner = f"that of {other.value}" if other is not None else "one of pg-harness itself"
                raise ConfigError(
                    f"the {self._noun} {point.name!r} of {point.value} has the same word as {owner}: "
                    f"they cannot be told apart; uninstall the package",
                    key=self._key,
                    value=point.name,
                )
            found[point.name] = point
        return found

    def _import(self, word: str) -> K:
        point = self._installed[word]
        try:
            entry: object = point.load()
        except Exception as error:  # whatever a package's module raises
            raise ConfigError(
                f"the {self._noun} {word!r} cannot be imported from {point.value} "
                f"({self.packages()[word]}): {type(error).__name__}: {error}",
                key=self._key,
                value=word,
            ) from error
        if not isinstance(entry, self._kind):
            raise ConfigError(
                f"the entry point {word!r} of {self._group} ({self.packages()[word]}) must name a "
                f"{self._kind.__module__}.{self._kind.__qualname__}; {point.value} is {type(entry).__name__}",
                key=self._key,
                value=word,
            )
        return entry


def resolved(reference: str | Callable[..., Any]) -> Callable[..., Any]:
    """What an entry names by ``"module:name"`` (or ``"module:class.name"``), or gives itself."""
    if not isinstance(reference, str):
        return reference
    module, _, names = reference.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return cast("Callable[..., Any]", found)
