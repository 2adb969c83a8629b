"""Every name that we give to a database, a role, a container or a lock is built and parsed here.

PostgreSQL cuts names to 63 bytes without an error, so no name holds text of the user's: people's
words are hashed or kept in the database's comment. A name tells, without asking anybody, whose it
is (``project``), what it is (``kind``) and what it belongs to::

    pgh_<project 10>_<kind 1>_<owner 16>[_<tail>]

    pgh_3f9a1c02be_t_9c1185a5c5e9fc54            template of the fingerprint 9c11…
    pgh_3f9a1c02be_s_9c1185a5c5e9fc54_a81f02c9   spare: a clone that nobody owns yet
    pgh_3f9a1c02be_l_5f0c3d2e1b7a9988_2_0        lease of run 5f0c…, worker 2, its first database
    pgh_3f9a1c02be_l_5f0c3d2e1b7a9988_2_0_n      what becomes it next: a clone that is being claimed
    pgh_3f9a1c02be_r_5f0c3d2e1b7a9988_2          a role: whom worker 2 of that run logs in as
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import Enum

PREFIX = "pgh"

CLAIMING = "_n"
"""What the name of a lease's next database ends with until it takes the lease's name."""


class Kind(Enum):
    """What a database of ours is."""

    TEMPLATE = "t"
    BUILDING = "b"
    """A template that is still being migrated, or whose migration was cut off."""
    BASELINE = "z"
    """A clone that only the admin enters, to read what the template held (reset)."""
    SPARE = "s"
    LEASE = "l"
    KEPT = "k"
    """What a failed test or migration left, for people to look at."""
    MARK = "m"
    """A copy of a lease's database, for a person to come back to."""
    RETIRED = "x"
    """Renamed away, to be dropped outside anybody's path."""


@dataclass(frozen=True)
class DatabaseName:
    """The parts of a database's name.

    Attributes:
        project: ten hex digits, see :func:`harness.config.project.checkout_id`.
        kind: what it is.
        owner: sixteen hex digits: the fingerprint for templates, buildings, baselines and spares;
            the run for leases and kept ones; random for retired ones.
        tail: what tells several of one owner apart: ``"<worker>_<index>"`` for leases, else random. A lease that is
            being made ends with :data:`CLAIMING`, a mark with its number.
    """

    project: str
    kind: Kind
    owner: str
    tail: str = ""

    def __str__(self) -> str:
        name = f"{PREFIX}_{self.project}_{self.kind.value}_{self.owner}"
        return f"{name}_{self.tail}" if self.tail else name

    @property
    def claiming(self) -> bool:
        """Whether it is a lease's next database, that is being made or handed over: see :func:`claiming`."""
        return self.kind is Kind.LEASE and self.tail.endswith(CLAIMING)

    @property
    def worker(self) -> str:
        """Of a lease: its worker, as names have it; empty for what is no lease."""
        return self._lease_tail.rpartition("_")[0]

    @property
    def index(self) -> int:
        """Of a lease: which of the worker's databases; 0 for what is no lease."""
        number = self._lease_tail.rpartition("_")[2]
        return int(number) if number.isdecimal() else 0

    @property
    def marked_lease(self) -> str:
        """The name of the lease's database that a mark is a copy of; empty for what is no mark."""
        if self.kind is not Kind.MARK:
            return ""
        return str(DatabaseName(self.project, Kind.LEASE, self.owner, self.tail.rpartition("_")[0]))

    @property
    def _lease_tail(self) -> str:
        return self.tail.removesuffix(CLAIMING) if self.kind is Kind.LEASE else ""


_PATTERN = re.compile(
    rf"{PREFIX}_(?P<project>[0-9a-f]{{10}})_(?P<kind>[{''.join(k.value for k in Kind)}])"
    r"_(?P<owner>[0-9a-f]{16})(?:_(?P<tail>[0-9a-z_]{1,24}))?"
)


def parse(name: str) -> DatabaseName | None:
    """The parts of one of our names; None for a name that is not ours."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    return DatabaseName(match["project"], Kind(match["kind"]), match["owner"], match["tail"] or "")


def template(project: str, fingerprint: str) -> str:
    """The one template of a fingerprint (64 hex digits; 16 are kept, the comment holds all)."""
    return str(DatabaseName(project, Kind.TEMPLATE, fingerprint[:16]))


def building(project: str, fingerprint: str) -> str:
    """A fresh name for a template under construction."""
    return str(DatabaseName(project, Kind.BUILDING, fingerprint[:16], token()))


def scheduler(project: str) -> str:
    """What every template of a checkout is called while it is being built on a server whose scheduler of jobs (pg_cron) serves one
    database: it can be set up in no other one."""
    return str(DatabaseName(project, Kind.BUILDING, "0" * 16, "jobs"))


def baseline(project: str, fingerprint: str) -> str:
    """The one baseline clone of a fingerprint."""
    return str(DatabaseName(project, Kind.BASELINE, fingerprint[:16]))


def spare(project: str, fingerprint: str) -> str:
    """A fresh name for a clone that nobody owns yet."""
    return str(DatabaseName(project, Kind.SPARE, fingerprint[:16], token()))


def lease(project: str, run: str, worker: str, index: int) -> str:
    """The database of one worker of one run.

    Args:
        run: sixteen hex digits, see :func:`run_id`.
        worker: any text, for instance ``"gw2"``: short plain words stay readable, others are hashed.
        index: which of the lease's databases, in the order of the settings; 0 is ``default``.
    """
    return str(DatabaseName(project, Kind.LEASE, run, f"{plain(worker)}_{index}"))


def plain(worker: str) -> str:
    """A worker's word as names have it: as it is where it is short and plain, else its hash."""
    return worker if re.fullmatch(r"[0-9a-z]{1,12}", worker) else "h" + digest(worker, 11)


def claiming(lease: str) -> str:
    """The name under which a lease's next database is made: of its run, so that the run's sign of life protects it."""
    return lease + CLAIMING


def kept(project: str, run: str) -> str:
    """A fresh name for a database that is kept for inspection."""
    return str(DatabaseName(project, Kind.KEPT, run, token()))


def short(kept_name: str) -> str:
    """What names a kept database where nothing else of ours is called so: its random end."""
    parsed = parse(kept_name)
    return parsed.tail if parsed is not None and parsed.tail else kept_name


def mark(project: str, run: str, tail: str, number: int) -> str:
    """The copy of a lease's database that the mark of this number holds.

    Args:
        tail: of the lease's name: its worker and which database.
        number: from 1.
    """
    return str(DatabaseName(project, Kind.MARK, run, f"{tail}_{number}"))


def retired(project: str) -> str:
    """A fresh name for a database that waits to be dropped."""
    return str(DatabaseName(project, Kind.RETIRED, secrets.token_hex(8), token()))


def role(project: str, run: str, worker: str) -> str:
    """The role that one worker of one run logs in as.

    Args:
        run: sixteen hex digits, see :func:`run_id`.
        worker: any text, as for :func:`lease`.
    """
    return f"{role_prefix(project)}{run}_{plain(worker)}"


def role_prefix(project: str) -> str:
    """What the names of all workers' roles of a checkout begin with."""
    return f"{PREFIX}_{project}_{_ROLE}_"


def run_of_role(name: str) -> str:
    """The run in a name that :func:`role` has made; empty for another one."""
    return match["run"] if (match := _ROLES.fullmatch(name)) else ""


_ROLE = "r"
"""What a role's name has where a database's has its kind."""

_ROLES = re.compile(rf"{PREFIX}_(?P<project>[0-9a-f]{{10}})_{_ROLE}_(?P<run>[0-9a-f]{{16}})_[0-9a-z]{{1,12}}")


def token() -> str:
    """Eight random hex digits."""
    return secrets.token_hex(4)


def digest(text: str, length: int) -> str:
    """The first hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]


def run_id(seed: str | None = None) -> str:
    """Sixteen hex digits that name one run: of ``seed`` (xdist's ``testrun_uid``), else random."""
    return digest(f"run:{seed}", 16) if seed is not None else secrets.token_hex(8)


BAKED = "ba4edba4ed"
"""The project of templates in a baked base: nobody's yet. Who starts from it renames them to its own."""

SANDBOX = "0" * 16
"""The run id of what ``up`` leases: a person's databases, never given to a test run, never swept."""
