"""Spares kept ready, and retired databases dropped, behind the caller's back: out of the tests' path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from harness.databases.clones import Clones
from harness.databases.template import Template
from harness.errors import HarnessError
from harness.postgres import databases

MOST_BYTES = 256 * 1024**2
"""A larger template has no spare made for it where it was not asked for: memory may be what a run is short of."""


@dataclass(frozen=True)
class Make:
    """A spare of this fingerprint is missing."""

    fingerprint: str


@dataclass(frozen=True)
class Drop:
    """This retired database may go."""

    name: str


def plan(spares: Mapping[str, int], wanted: int, retired: Sequence[str]) -> Make | Drop | None:
    """The next thing to do; None where there is nothing.

    Spares first: a test may wait for one, nobody waits for a drop. The emptiest template first.

    Args:
        spares: fingerprint → how many finished spares there are.
        wanted: how many there should be of each.
        retired: names of databases that wait to be dropped.
    """
    if spares:
        emptiest = min(spares, key=lambda fingerprint: spares[fingerprint])
        if spares[emptiest] < wanted:
            return Make(emptiest)
    return Drop(retired[0]) if retired else None


class Filler:
    """One thread with a connection of its own that does what :func:`plan` says, whenever it is woken.

    A failure is kept and ends the filling until it is woken again (callers make their clones themselves then); it is
    never raised in the thread.
    """

    def __init__(self, clones: Clones, templates: Sequence[Template], *, wanted: int = 1) -> None:
        """
        Args:
            clones: with a link for this object alone.
            wanted: spares of each template to keep ready.
        """
        self._clones = clones
        self._templates = {t.fingerprint: t for t in templates}
        self._wanted = wanted
        self._lent: set[str] = set()
        self._made: list[str] = []
        self._soon: list[Callable[[], object]] = []
        self._retired: list[str] = []
        self._doing = ""
        self._condition = threading.Condition()
        self._awake = True
        self._closing = False
        self.failure: HarnessError | None = None
        self._thread = threading.Thread(target=self._work, name="pg-harness filler", daemon=True)
        self._thread.start()

    def retire(self, name: str) -> None:
        """Have a retired database dropped later; also wakes the filler because a spare was taken."""
        with self._condition:
            if name:
                self._retired.append(name)
            self._awake = True
            self._condition.notify_all()

    def replaced(self, name: str, template: Template, then: Callable[[], object]) -> None:
        """A test's database was replaced by a fresh clone: the next time a spare is there, until :meth:`close`.

        Args:
            name: what the old one is called now, to be dropped; empty where it was gone.
            then: done before anything else; what it raises is nobody's business.
        """
        with self._condition:
            known = template.fingerprint in self._templates
            if known or template.size <= MOST_BYTES:
                self._templates[template.fingerprint] = template
                if not known:
                    self._lent.add(template.fingerprint)
            self._soon.append(then)
        self.retire(name)

    def idle(self, timeout: float) -> bool:
        """Wait until there is nothing to do, for ``timeout`` seconds at most; whether it is so."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._awake and not self._doing, timeout)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._awake or self._closing)
                self._awake = False
                if self._closing:
                    return
                self._doing = "looking"
            try:
                self._fill()
            except HarnessError as error:
                self.failure = error
            if self._lent:
                # Where a clone is the exception, the session is not held: the budget of connections knows none of it.
                self._clones.link.close()
            with self._condition:
                self._doing = ""
                self._condition.notify_all()

    def _fill(self) -> None:
        failure: HarnessError | None = None
        while True:
            with self._condition:
                if self._closing:
                    return
                soon, self._soon = self._soon, []
                templates = {} if failure is not None else dict(self._templates)
            for act in soon:
                # Not even what nobody foresaw may end this thread, nor show up in somebody's test.
                with suppress(Exception):
                    act()
            counts = {f: len(self._clones.spares(t)) for f, t in templates.items()}
            # Decide under the lock, act outside it.
            with self._condition:
                if self._closing:
                    return
                doing = plan(counts, self._wanted, self._retired)
                if isinstance(doing, Drop):
                    self._retired.remove(doing.name)
                self._doing = repr(doing)
            if doing is None:
                break
            if isinstance(doing, Drop):
                self._drop(doing.name)
                continue
            try:
                made = self._clones.make_spare(templates[doing.fingerprint])
            except HarnessError as error:
                # Where there is no room for a spare, what is retired must go all the same.
                failure = error
                continue
            if doing.fingerprint in self._lent:
                self._made.append(made)
        if failure is not None:
            raise failure

    def _drop(self, name: str) -> None:
        try:
            databases.drop_retired(self._clones.link.session, name)
        except HarnessError:
            # The session was lost: at the next attempt there is a new one.
            self._retired.append(name)
            raise

    def close(self, *, timeout: float = 30.0, drop: bool = True) -> None:
        """Stop, after the act at hand; drop what waits to be dropped, and the spares that only this run had need of.
        Twice is once.

        Args:
            drop: False where the whole server is about to go.
        """
        with self._condition:
            already, self._closing = self._closing, True
            self._condition.notify_all()
        if already:
            return
        self._thread.join(timeout)
        try:
            for name in [*self._retired, *self._given_back()] if drop else ():
                databases.drop_retired(self._clones.link.session, name)
        except HarnessError as error:
            self.failure = error
        self._retired.clear()
        self._made.clear()
        self._clones.link.close()

    def _given_back(self) -> list[str]:
        """Spares that were made here for this run alone, and that nobody has taken."""
        there = [spare for f in self._lent if self._made for spare in self._clones.spares(self._templates[f])]
        return [spare for spare in there if spare in self._made]

    def __repr__(self) -> str:
        with self._condition:
            return (
                f"<Filler {len(self._templates)} templates, {self._wanted} wanted | {len(self._retired)} to drop"
                f"{' | closed' if self._closing else ''}>"
            )
