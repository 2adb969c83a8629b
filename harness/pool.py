"""Spares kept ready, and retired databases dropped, behind the caller's back: out of the tests' path."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.catalog import databases
from harness.clones import Clones
from harness.errors import HarnessError
from harness.template import Template


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
            with self._condition:
                self._doing = ""
                self._condition.notify_all()

    def _fill(self) -> None:
        while True:
            # Decide under the lock, act outside it.
            counts = {f: len(self._clones.spares(t)) for f, t in self._templates.items()}
            with self._condition:
                if self._closing:
                    return
                act = plan(counts, self._wanted, self._retired)
                if isinstance(act, Drop):
                    self._retired.remove(act.name)
                self._doing = repr(act)
            if act is None:
                return
            if isinstance(act, Make):
                self._clones.make_spare(self._templates[act.fingerprint])
                continue
            try:
                databases.drop_retired(self._clones.link.session, act.name)
            except HarnessError:
                # The session was lost: at the next attempt there is a new one.
                self._retired.append(act.name)
                raise

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop, after the act at hand; drop what waits to be dropped. Twice is once."""
        with self._condition:
            already, self._closing = self._closing, True
            self._condition.notify_all()
        if already:
            return
        self._thread.join(timeout)
        try:
            for name in self._retired:
                databases.drop_retired(self._clones.link.session, name)
        except HarnessError as error:
            self.failure = error
        self._retired.clear()
        self._clones.link.close()

    def __repr__(self) -> str:
        with self._condition:
            return (
                f"<Filler {len(self._templates)} templates, {self._wanted} wanted | {len(self._retired)} to drop"
                f"{' | closed' if self._closing else ''}>"
            )
