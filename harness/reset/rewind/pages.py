"""The way by pages through one reset: tried in each turn, insisted on in place of a clone; and the marks that only it can reach."""

from __future__ import annotations

from collections.abc import Callable

from harness.errors import LeaseError
from harness.reset import marking
from harness.reset.changes import Changes, RecloneNeeded
from harness.reset.connections import Connections
from harness.reset.contention import Contention
from harness.reset.marks import Layer, Mark, Marks
from harness.reset.rewind import page_marks
from harness.reset.rewind.rewinder import Rewinder, Rewound
from harness.reset.tracker import Tracker
from harness.reset.wal.reader import WalWindow


class Pages:
    """Of one lease. Where its server has no module, there is no rewinder, and everything is left to the rows.

    Args:
        look: reads the log from where the last window ended, for whoever is in the way.
    """

    def __init__(
        self,
        rewinder: Rewinder | None,
        connections: Connections,
        tracker: Tracker,
        marks: Marks,
        look: Callable[[], WalWindow],
    ) -> None:
        self.rewinder = rewinder
        self._connections, self._tracker, self._marks = connections, tracker, marks
        self._look = look

    @property
    def only(self) -> bool:
        """Whether the state to go back to, or one that was released just now, is known by pages only."""
        return bool(self._marks.pages or (self.rewinder is not None and self.rewinder.above))

    @property
    def on(self) -> bool:
        """Whether this server has the module, as far as is known."""
        return self.rewinder is not None and not self.rewinder.lasting

    def rebase(self) -> None:
        """The tracker was based anew."""
        if self.rewinder is not None:
            self.rewinder.rebase(self._connections, self._tracker, self._marks.pages)

    def may(self, met: Contention) -> bool:
        """Whether they are worth a try."""
        # With locks of ours it would wait for ourselves.
        return self.rewinder is not None and not self._marks.of_rows and not met.contended

    def turn(self) -> Rewound | None:
        """See :meth:`Rewinder.turn`."""
        if self.rewinder is None:
            return None
        return self.rewinder.turn(self._connections, self._tracker, self._marks.pages)

    def insist(self, met: Contention) -> Rewound | None:
        """Put back pages in place of a clone, where nothing but somebody in the way speaks against it."""
        if self.rewinder is None or self._marks.of_rows:
            return None
        met.give_up()
        return self.rewinder.insist(self._connections, self._tracker, met.sessions, self._marks.pages)

    def make_way(self, met: Contention, rewound: Rewound | None = None) -> None:
        """Wait for whoever is in the way of a rewind that nothing can take the place of; at the deadline they are ended.

        Args:
            rewound: what the rewind did, where only an advisory lock is left.

        Raises:
            RecloneNeeded: nobody is in the way: pages cannot be put back.
        """
        rewinder = self.rewinder
        answer = None if rewinder is None or rewinder.off else rewinder.last
        if answer is None or (rewound is None and answer.status not in ("busy", "locked")):
            why = "no module" if rewinder is None else rewinder.off or rewinder.left
            raise RecloneNeeded(f"the marked state is one of pages, which cannot be put back: {why}")
        if met.sessions.hindered(self._look()):
            return
        if answer.status == "locked":
            met.sessions.lock_holders(answer.touched, lockless=True)
        elif answer.status == "busy":
            met.sessions.inside(answer.busy, prepared=answer.prepared)

    def mark(self, met: Contention) -> Mark | None:
        """Push a mark of pages; None where it has to be one of rows.

        Raises:
            LeaseError: what changed cannot be held by a mark, or those below are of pages and this one cannot be.
        """
        rewinder, below = self.rewinder, self._marks.pages
        if rewinder is None or self._marks.of_rows:
            return None
        name = page_marks.name_for(self._connections.lease.dsn.database)
        while (answer := rewinder.mark(self._connections, self._tracker, below, name)) is not None:
            if answer.status == "marked":
                mark = Mark(self._marks.next_number(), self._marks, self.release_top)
                self._marks.push(Layer(mark, {}, {}, Changes(), pages=name))
                try:
                    if answer.shared and self._tracker.shared_changed:
                        raise LeaseError(marking.NOT_SHARED)
                except BaseException:
                    # The server may be lost while it is asked: a mark that nobody was given would be gone back to for ever.
                    self.release_top()
                    raise
                return mark
            if answer.status not in ("busy", "locked"):
                break
            self.make_way(met)
        if below or rewinder.above:
            raise LeaseError(f"the mark cannot be set above one of pages: {rewinder.off or rewinder.left}")
        return None

    def release_top(self) -> None:
        """Release the top mark, of whichever kind: what it holds is a change against the state below."""
        if self.rewinder is not None and self._marks.pages:
            self.rewinder.release(self._marks.pop().pages)
        else:
            self._tracker.release_top()

    def close(self) -> None:
        """Remove the files of all marks, where the server can still be asked to."""
        if self.rewinder is not None:
            self.rewinder.close(self._connections, self._marks.pages)
