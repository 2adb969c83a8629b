"""The freshness strategies: what may stand in ``fresh``, and what is done before each test for each word.

A strategy is one object of the form of :class:`Freshness`, ours in :data:`STRATEGIES`, others' named by an installed
package's entry point in the group ``pg_harness.freshness``. Nothing else decides by the words: settings, the
pytest plugin, ``doctor`` and messages ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from harness.config.extensions import Extensions
from harness.config.settings import Settings
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.databases.lease import Lease
    from harness.reset.report import ResetReport

GROUP = "pg_harness.freshness"
"""The entry points of other packages: the word, and ``module:STRATEGY``."""


@runtime_checkable
class Freshness(Protocol):
    """One way to give each test the state that it starts from.

    Attributes:
        name: the word in the settings.
        says: what each test starts from, for pytest's header.
        refreshes: whether it undoes anything. Where no test of a run is refreshed, nothing is sent to the server
            for a test that passes, and what wider fixtures wrote is not marked.
        watches: whether leases are watched from the start, for resets from the first write on
            (see :meth:`harness.databases.lease.Lease.watch`). Where it is False, the pytest plugin watches once all
            tests are collected.
        spares: how many clones are kept ready in the background while tests run.
    """

    name: str
    says: str
    refreshes: bool
    watches: bool
    spares: int

    def refresh(self, lease: Lease) -> ResetReport | None:
        """Undo what the last test has left; called before every fixture of the next one.

        Returns:
            What was done, for the summary; None: nothing that is worth to be counted.

        Raises:
            HarnessError: it cannot be done; the test that was about to begin fails with this.
        """


class Reset:
    """Puts back what was changed, with the application's sessions kept."""

    name = "reset"
    says = "each test starts from a reset database"
    refreshes = True
    watches = True
    spares = 0

    def refresh(self, lease: Lease) -> ResetReport | None:
        """A clone only where a reset is not certain."""
        return lease.reset()


class Clone:
    """Replaces the databases."""

    name = "clone"
    says = "each test starts from a new clone; connections that the application pools are ended for it"
    refreshes = True
    watches = False
    # The next one is made, and the last one dropped, while a test runs.
    spares = 1

    def refresh(self, lease: Lease) -> ResetReport | None:
        """Without a reason: a clone is what was asked for."""
        return lease.renew(reason="")


class Nothing:
    """Leaves everything as it is."""

    name = "none"
    says = "each test starts from what the last one left"
    refreshes = False
    watches = False
    spares = 0

    def refresh(self, lease: Lease) -> ResetReport | None:
        """Nothing is done."""
        return None


_OURS: tuple[Freshness, ...] = (Reset(), Clone(), Nothing())

STRATEGIES: Mapping[str, Freshness] = {strategy.name: strategy for strategy in _OURS}
"""Word → strategy, those that come with us."""

_EXTENSIONS = Extensions(
    GROUP,
    STRATEGIES,
    Freshness,  # type: ignore[type-abstract]  # only asked whether an object has that form
    noun="freshness strategy",
    key="fresh",
)


strategies = _EXTENSIONS.all
"""Word → strategy, ours first, then those of installed packages.

Raises:
    ConfigError: a package's strategy cannot be imported, or takes a word that is in use.
"""

packages = _EXTENSIONS.packages
"""Word → the package that adds the strategy, for people; ours are not in it."""


def find(word: str) -> Freshness | None:
    """The strategy of a word; None where there is none. Packages are asked for a word that is not ours only.

    Raises:
        ConfigError: as :func:`strategies`; or a package names one strategy by the word of another.
    """
    strategy = _EXTENSIONS.find(word)
    if strategy is not None and strategy.name != word:
        raise ConfigError(
            f"the entry point {word!r} of {GROUP} ({packages()[word]}) names a strategy that calls itself "
            f"{strategy.name!r}: both must be the same word",
            key="fresh",
            value=word,
        )
    return strategy


def of(settings: Settings) -> Freshness:
    """The strategy that the settings name.

    Raises:
        ConfigError: there is none of that word; with all that there are.
    """
    strategy = find(settings.fresh)
    if strategy is None:
        origin = settings.origin("fresh")
        words = ", ".join(repr(word) for word in strategies())
        raise ConfigError(
            f"{origin}: fresh must be one of {words} (it is {settings.fresh!r})",
            key="fresh",
            origin=origin,
            value=settings.fresh,
        )
    return strategy


def check_settings(settings: Settings) -> None:
    """Refuse what :func:`of` would refuse, before any server is started.

    Raises:
        ConfigError: names file, key and all words that there are.
    """
    of(settings)


def watching() -> str:
    """The settings that watch every lease, for messages: ``fresh = "…"``."""
    return " or ".join(f'fresh = "{strategy.name}"' for strategy in _OURS if strategy.watches)


def in_words(words: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *most, last = (repr(word) for word in words)
    return f"{', '.join(most)} or {last}" if most else last
