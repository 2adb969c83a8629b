"""Processes that are killed before, in the middle of and right after rewinds: the server comes back, and what was rewound stays so.

The log is what makes it true: recovery replays the test's records and the rewind's, one after the other. Where the rewind had
answered, and its records were flushed, every page equals the baseline's after the crash; where it had not, its caller was told by an
error, and takes a clone. ``PGHARNESS_TEST_KILLS`` says how many for each version.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from diff_workloads import CONNECTIONS
from fix_reset_bytes import Difference, compare_files, folder
from fix_reset_servers import VERSIONS, Server
from fix_rewind import count_on
from fix_rewind_hurt import PATIENCE, Hurt, hurt, log_of
from fix_rewind_module import need_compiler
from rw_operations import generate
from rw_runner import Rounds

from harness.errors import ServerLost, ServerRefused

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
KILLS = int(os.environ.get("PGHARNESS_TEST_KILLS", "200" if LONG else "16"))
SEED = int(os.environ.get("PGHARNESS_TEST_SEED", "1"))
PER_SCHEMA = 20
ENOUGH = 50
_LONGEST = 0.008
"""Seconds after the begin of a rewind until which somebody is killed."""

MOMENTS = (
    "before",
    "during",
    "during",
    "during",
    "after",
    "after and flushed",
    "after and flushed",
    "after a checkpoint",
)
VICTIMS = ("rewinder", "application", "postmaster", "checkpointer")

# What a rewind must never be the cause of; a killed process and the recovery say other things.
_WRONG = re.compile(
    r"PANIC|TRAP|invalid page|does not exist in|WAL contains references|could not (read|write|open) (block|file)"
)


class Killed(Rounds):
    """Rounds in which somebody is killed."""

    # Images in the log leave out the hole in a page: after a recovery there are zeros.
    hole = False

    def __init__(self, hurt: Hurt, seed: int, plants: tuple[str, ...] = ()) -> None:
        self.hurt = hurt
        super().__init__(hurt.server, seed, plants)

    def kill(self, victim: str, pids: dict[str, int]) -> None:
        with suppress(ProcessLookupError):
            os.kill(pids[victim], signal.SIGKILL)

    @staticmethod
    def harmless(one: Difference) -> bool:
        """Recovery keeps maps of free space in its own way."""
        return one.fork == "fsm"

    def pids(self) -> dict[str, int]:
        assert self.server.data is not None
        application = next((session for _, session in self.kept()), None) or self.session(0)
        return {
            "rewinder": self.rewinder.admin.connection.info.backend_pid,
            "application": application.connection.info.backend_pid,
            "postmaster": int((self.server.data / "postmaster.pid").read_text().split()[0]),
            "checkpointer": self.admin.value(
                "select pid from pg_stat_activity where backend_type = 'checkpointer'"
            ),
        }

    def flush(self) -> None:
        """The log up to here is on disk."""
        with self.server.session(settings={"synchronous_commit": "on"}) as session:
            session.rows("select pg_logical_emit_message(true, 'pgh', '')")

    def come_back(self, postmaster: bool) -> None:
        """Wait until the server has recovered, and log in again."""
        deadline = time.monotonic() + PATIENCE
        with suppress(ServerLost, ServerRefused):
            # It ends all sessions before it recovers: until then it would let us in again.
            while time.monotonic() < deadline:
                self.admin.rows("select pg_sleep(0.005)")
        for session in [self.admin, self.rewinder.admin, *(session for _, session in self.kept())]:
            session.close()
        self.sessions = [None] * (CONNECTIONS + 1)
        while postmaster and not self.hurt.start():
            assert time.monotonic() < deadline, log_of(self.server)[-3000:]
        while True:
            try:
                with self.server.session() as session:
                    session.rows("select 1")
                break
            except (ServerLost, ServerRefused):
                assert time.monotonic() < deadline, log_of(self.server)[-3000:]
                time.sleep(0.02)
        self.admin = self.server.session()
        self.rewinder.connect()
        self.rewinder.know()

    def one(self, seed: int, counts: Counter[str], moment: str = "", victim: str = "") -> list[str]:
        """Write, rewind, kill; what is wrong afterwards.

        Args:
            moment: when; empty: as the seed says.
            victim: who; empty likewise.
        """
        rng = random.Random(seed)
        moment, victim = moment or rng.choice(MOMENTS), victim or rng.choice(VICTIMS)
        # Killed by SIGKILL, a checkpointer takes the server down as a backend does; a postmaster has to be started again.
        for _ in range(rng.randint(0, 2)):
            for operation in generate(rng.randrange(10**6), self.schema):
                self.perform(operation)
            self.settle()
            self.rewind()
        for operation in generate(seed, self.schema):
            self.perform(operation)
        self.settle()
        pids = self.pids()
        answered = ""
        try:
            if moment == "before":
                self.kill(victim, pids)
            if moment == "during":
                killer = threading.Timer(rng.random() * _LONGEST, self.kill, (victim, pids))
                killer.start()
                try:
                    answered = self.rewind().status
                finally:
                    killer.join()
            if moment.startswith("after"):
                answered = self.rewind().status
                if moment == "after a checkpoint":
                    self.admin.execute("checkpoint")
                if moment == "after and flushed":
                    self.flush()
                self.kill(victim, pids)
        except (ServerLost, ServerRefused):
            answered = "error"
        self.come_back(victim == "postmaster")
        counts[f"{moment}, {victim}"] += 1
        kept = moment in ("after a checkpoint", "after and flushed") and answered in ("rewound", "nothing")
        found = []
        if kept:
            counts["equal after the crash"] += 1
            self.rewinder.start()
            differences = [*self.rewinder.differences(hole=False), *self.files()]
            found = [f"{moment}, {victim}: {one}" for one in differences if not self.harmless(one)]
            found += [f"{moment}, {victim}: {seen}" for seen in self._anew(thorough=True)]
            # The caller notices a crash and takes a clone all the same; but if he does not, the next rewind is right too.
            if not found:
                self._put_back_shared()
                for operation in generate(seed + 1, self.schema):
                    self.perform(operation)
                self.settle()
                answer = self.rewind()
                if answer.status in ("rewound", "nothing"):
                    found = [f"after it: {one}" for one in self.compare(answer, thorough=True)]
        wrong = _WRONG.search(log_of(self.server))
        if wrong:
            found.append(
                f"the server's log says {log_of(self.server)[max(0, wrong.start() - 300) : wrong.end() + 300]}"
            )
        self.reclone()
        return found

    def files(self) -> list[Difference]:
        self.admin.execute("checkpoint")
        lease, baseline = (
            folder(self.admin, self.server.data, oid) for oid in (self.rewinder.oid, self.rewinder.base)
        )
        return compare_files(lease, baseline, self.rewinder.relations, hole=False)

    def _seen(self, whose: str, seen: list[object]) -> list[str]:
        # Unlogged tables are empty after a crash, in the baseline too: what was noted before does not hold.
        loose = self.tables.index("loose")
        unlogged = {
            loose,
            *(i for i, name in enumerate(self.tables) if f"create unlogged table {name} " in self.schema.sql),
        }
        mine, theirs = list(seen), list(self.wanted)
        for index in unlogged:
            mine[index] = theirs[index] = None
        self.wanted, kept = theirs, self.wanted
        try:
            return super()._seen(whose, mine)
        finally:
            self.wanted = kept


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda v: f"pg{v}")
def own_server(request: pytest.FixtureRequest) -> Iterator[Hurt]:
    need_compiler(request.param)
    with hurt(request.param) as found:
        yield found


@pytest.mark.timeout(300 + 5 * KILLS)
def test_whoever_is_killed_the_server_comes_back_and_what_was_rewound_stays_so(own_server: Hurt) -> None:
    if own_server.server.data is None:
        pytest.skip("its files are in a container")
    counts: Counter[str] = Counter()
    kills = count_on(own_server.server.version, "PGHARNESS_TEST_KILLS", KILLS)
    for first in range(SEED, SEED + kills, PER_SCHEMA):
        rounds = Killed(own_server, first)
        try:
            for seed in range(first, min(first + PER_SCHEMA, SEED + kills)):
                found = rounds.one(seed, counts)
                assert not found, f"schema {first}, seed {seed}:\n  " + "\n  ".join(found[:10])
        finally:
            rounds.close()
    print(f"\nPostgreSQL {own_server.server.version}: {dict(counts)}")
    assert kills < ENOUGH or counts["equal after the crash"] > kills / 10
    # Each schema's databases are gone: nothing is left behind by rewinds that were cut off.
    with own_server.server.session() as session:
        assert session.column("select datname from pg_database where datname like 'rounds%'") == []


def test_a_session_that_is_told_of_a_crash_in_the_middle_gets_an_error(own_server: Server) -> None:
    """The connection is gone: the caller cannot take a half rewound lease for a pristine one."""
    if own_server.server.data is None:
        pytest.skip("its files are in a container")
    rounds = Killed(own_server, 999)
    try:
        pids = rounds.pids()
        os.kill(pids["application"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        with pytest.raises((ServerLost, ServerRefused)):  # noqa: PT012 - whichever call is hit
            while time.monotonic() < deadline:
                rounds.rewinder.rewind()
        rounds.come_back(False)
    finally:
        rounds.close()


# Where images of pages are in the log, recovery has zeros in the hole of a page, and we what lay there before. And where a record
# has made the main fork of a new unlogged relation, recovery could not make it anew at its end.
SURE = {
    "rows moved into the hole": (
        "checkpoint",
        "delete from uniq where id % 3 = 0",
        "vacuum uniq",
        "checkpoint",
        "delete from uniq where id % 3 = 1",
        "vacuum uniq",
    ),
    "new unlogged tables": (
        "create unlogged table loose_new (k serial primary key, v text)",
        "insert into loose_new (v) select repeat('x', 3000) from generate_series(1, 50)",
        "create unlogged table loose_gone (k serial primary key)",
        "drop table loose_gone",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.timeout(300)
@pytest.mark.server
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_recovery_makes_otherwise_comes_back_too(version: int) -> None:
    need_compiler(version)
    with hurt(version, {"full_page_writes": "on"}) as server:
        if server.server.data is None:
            pytest.skip("its files are in a container")
        for what, statements in SURE.items():
            rounds = Killed(server, SEED)
            try:
                with server.server.session(rounds.name) as inside:
                    for statement in statements:
                        inside.execute(statement)
                assert rounds.rewind().status == "rewound", what
                rounds.flush()
                rounds.kill("application", rounds.pids())
                rounds.come_back(False)
                rounds.rewinder.start()
                found = [*rounds.rewinder.differences(hole=False), *rounds.files()]
                assert [str(one) for one in found if not rounds.harmless(one)] == [], what
            finally:
                rounds.close()
