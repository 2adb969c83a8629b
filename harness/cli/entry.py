"""From words to a verb, and from errors to exit codes: the only place that catches everything."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from harness.cli import BUG
from harness.cli.console import Console, verbosity_count
from harness.cli.context import Context
from harness.cli.parser import Usage, parse
from harness.config.logs import Verbosity
from harness.errors import HarnessError, out_of_files


class Terminated(BaseException):
    """A signal asked us to end; what was begun is undone on the way out.

    Attributes:
        signum: which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def run(words: Sequence[str]) -> int:
    """Run one command; never raises for a mistake of the user's."""
    environ = os.environ
    if "_PG_HARNESS_COMPLETE" in environ:
        # A shell asks: of no use to any other command.
        from harness.cli.completion import answer

        return answer(environ)
    console = Console(environ)
    asked: list[int] = []
    context: Context | None = None
    try:
        with signals(console, asked):
            verb, arguments, command = parse(words)
            console.listen(Verbosity.of(environ, verbosity_count(arguments)))
            context = Context(arguments, environ, console, command)
            return verb(context)
    except Usage as usage:
        console.error(usage.message)
        return usage.exit_code
    except HarnessError as error:
        console.error(error.full_text)
        if context is not None:
            context.note(error)
        if environ.get("PGHARNESS_DEBUG"):
            _traceback()
        # What could not be undone was told; that somebody asked us to end is why we end.
        return 128 + asked[0] if asked else error.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except Terminated as ended:
        console.error(f"ended by signal {ended.signum}")
        return 128 + ended.signum
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 — the last line of defence: a person gets words, not a traceback
        if (full := out_of_files(error)) is not None:
            console.error(full.message)
            return full.exit_code
        _unexpected(console, error, debug=bool(environ.get("PGHARNESS_DEBUG")))
        return 128 + asked[0] if asked else BUG
    finally:
        console.close()


def _unexpected(console: Console, error: Exception, *, debug: bool) -> None:
    if isinstance(error, OSError) and error.filename is not None:
        console.error(f"{error.strerror}: {error.filename}")
    else:
        text = " ".join(str(error).split())[:300]
        console.error(f"{type(error).__name__}: {text}")
    if debug:
        _traceback()
    else:
        console.error(
            "this should not have happened: it is a bug in pg-harness. Run the command again with "
            "PGHARNESS_DEBUG=1 and report it with the traceback"
        )


def _traceback() -> None:
    traceback.print_exc()


@contextmanager
def signals(console: Console, asked: list[int]) -> Iterator[None]:
    """Signals become exceptions, once: what is being undone must not be interrupted by an impatient second Ctrl-C.

    Args:
        asked: is given each signal that came.
    """

    def handle(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) == 2:
            console.warn("cleaning up; once more to stop at once")
            return
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(signum)

    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored, a shell's background job SIGINT: it stays so.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
        sys.stdout is None or sys.stdout.flush()
