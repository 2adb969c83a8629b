"""What can go wrong, one class per kind of fault.

::

    HarnessError                     exit code
    ├─ ConfigError                   120   a setting, an option or an argument is wrong
    ├─ BackendError                  121
    │  ├─ BackendUnavailable         121   nothing here can start a server
    │  ├─ ServerStartError           122   the server was started and did not become ready
    │  ├─ ServerLost                 122   the server answered before and does not any more
    │  └─ ServerRefused              121   the server refused one of our own statements
    ├─ MigrationError                123   a migration failed or hung
    ├─ TemplateBusy                  123   a session sits on the template
    ├─ LeaseError                    124
    │  ├─ LeaseClosed                124   you released it
    │  ├─ LeaseLost                  124   the world dropped it
    │  ├─ ReplicaBehind              124   a standby does not show what was written, within the time allowed
    │  └─ LeaseInUse                 124   sessions of the application do not let go
    └─ PoolTimeout (TimeoutError)    124   no database within the time allowed

Every error carries its data as attributes and survives ``pickle``, because pytest-xdist and
``multiprocessing`` send exceptions from one process to another. Its text is one screen: what is
wrong, where it came from, what was tried, what to do. What is found out later, on its way up, is a note
(:meth:`BaseException.add_note`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from harness.listing import together


class HarnessError(Exception):
    """Base of everything that this package raises on purpose.

    Attributes:
        message: the text, one screen at most.
        exit_code: what ``python -m harness`` exits with (120 to 124).
    """

    exit_code: ClassVar[int] = 124

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls cls(*args): it loses keyword-only attributes and fails in the other process.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))

    def __str__(self) -> str:
        return self.message

    @property
    def full_text(self) -> str:
        """The text with the notes that were added, as a traceback prints it."""
        return "\n".join([self.message, *getattr(self, "__notes__", ())])


def _rebuild(cls: type[HarnessError], message: str, state: dict[str, Any]) -> HarnessError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigError(HarnessError):
    """A setting, an option or an argument is wrong.

    Attributes:
        key: the setting's name, for instance ``"isolation"``; empty where there is none.
        origin: where the value came from, for instance ``"pyproject.toml [tool.pg-harness]"``.
        value: the offending value, as text; never a secret.
    """

    exit_code = 120

    def __init__(self, message: str, *, key: str = "", origin: str = "", value: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.origin = origin
        self.value = value


class BackendError(HarnessError):
    """A server cannot be found, started or reached."""

    exit_code = 121


class BackendUnavailable(BackendError):
    """Nothing on this machine can start a server as asked.

    Attributes:
        checked: every place that was looked at, with what was found there.
        remedies: what to do, one line each.
        absent: there is no sign of it on this machine, so that nothing of ours can be there either.
    """

    def __init__(
        self,
        message: str,
        *,
        checked: Sequence[str] = (),
        remedies: Sequence[str] = (),
        absent: bool = False,
    ) -> None:
        super().__init__(_with_lists(message, checked=checked, remedies=remedies))
        self.checked = tuple(checked)
        self.remedies = tuple(remedies)
        self.absent = absent


class ServerStartError(BackendError):
    """The server was started and did not become ready.

    Attributes:
        log_tail: the last lines of the server's own log.
    """

    exit_code = 122

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        text = (
            message if not log_tail else f"{message}\n--- the server's log ends with ---\n{log_tail.rstrip()}"
        )
        super().__init__(text)
        self.log_tail = log_tail


class ServerLost(BackendError):
    """The server answered before and does not any more."""

    exit_code = 122


def out_of_files(error: BaseException) -> BackendError | None:
    """What to raise instead, where this process or the machine may open no further file; None: it is another error."""
    # libpq tells it in words only, and it would pass for a server that is gone.
    full = getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)
    if (
        not full
        and os.strerror(errno.EMFILE) not in str(error)
        and os.strerror(errno.ENFILE) not in str(error)
    ):
        return None
    try:
        import resource  # not on every system

        limit = f"its limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    except ImportError:
        limit = "its limit is reached"
    return BackendError(
        f"this process may open no further file or connection ({limit}): {error}. Raise it, for instance with "
        "`ulimit -n 1024` in the shell that calls it"
    )


class ServerRefused(BackendError):
    """The server refused one of our own statements: a missing right, a full disk, a name in use.

    Attributes:
        sqlstate: the five characters that PostgreSQL names the condition by ("53100" is a full disk).
        statement: what was asked, cut to one line; literals are left out where they may be secret.
    """

    exit_code = 121

    def __init__(self, message: str, *, sqlstate: str = "", statement: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.statement = statement


class MigrationError(HarnessError):
    """A migration failed, hung, or cannot be read.

    Attributes:
        source: the migration source as written in the settings, for instance ``"sql:db/migrations"``.
        step: the file, revision or command that failed; empty where it is unknown.
        database: the half-migrated database that was kept for inspection; empty where none was.
    """

    exit_code = 123

    def __init__(self, message: str, *, source: str = "", step: str = "", database: str = "") -> None:
        super().__init__(message)
        self.source = source
        self.step = step
        self.database = database


class TemplateBusy(HarnessError):
    """A session sits on the template, so it can be neither frozen nor cloned.

    Attributes:
        sessions: one line per session: pid, application, state, last query.
    """

    exit_code = 123

    def __init__(self, message: str, *, sessions: Sequence[str] = ()) -> None:
        super().__init__(_with_lists(message, sessions=sessions))
        self.sessions = tuple(sessions)


class LeaseError(HarnessError):
    """A leased database cannot be given, reset or taken back."""


class LeaseClosed(LeaseError):
    """You released this lease; it cannot be used any more."""


class LeaseLost(LeaseError):
    """The database of this lease was dropped or renamed by somebody else, or its server restarted."""


class ReplicaBehind(LeaseError):
    """A standby has not replayed what its primary has written, within the time allowed.

    Attributes:
        behind: bytes of the log that were left; None where it did not say.
    """

    def __init__(self, message: str, *, behind: int | None = None) -> None:
        super().__init__(message)
        self.behind = behind


class LeaseInUse(LeaseError):
    """Sessions of the application do not let go of the database.

    Attributes:
        sessions: one line per session: pid, application, state, last query.
    """

    def __init__(self, message: str, *, sessions: Sequence[str] = ()) -> None:
        super().__init__(_with_lists(message, sessions=sessions))
        self.sessions = tuple(sessions)


class PoolTimeout(HarnessError, TimeoutError):
    """No database could be had within the time allowed."""


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The one of the known words that was probably meant, for messages; empty where none is near.

    Args:
        cutoff: how near, as difflib's ratio, from 0 to 1.
    """
    import difflib  # lazy: needed only where something is wrong

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def _with_lists(message: str, **lists: Sequence[str]) -> str:
    titles = {"checked": "What was tried:", "remedies": "What to do:", "sessions": "Sessions:"}
    parts = [message]
    for name, lines in lists.items():
        if lines:
            parts.append(titles[name])
            parts.extend(f"  - {line}" for line in (together(lines) if name == "sessions" else lines))
    return "\n".join(parts)
