"""Rounds on one schema: write at random, rewind, compare the bytes, and read in sessions that were kept and in new ones."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import psycopg
from diff_further import deterministic
from diff_schemas import Schema
from diff_schemas import generate as generate_schema
from diff_workloads import CONNECTIONS, Maker, Operation, smaller
from fix_reset_bytes import Difference, compare_files, folder
from fix_reset_servers import Server, clone, drop, make_databases
from fix_rewind_module import Answer, Rewinder
from rw_operations import SUPERUSER, enlarged

from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session

SETTINGS = {
    # The sessions of one round get in each other's way: a short patience keeps it short.
    "lock_timeout": "20ms",
    # Unordered reads are compared.
    "synchronize_seqscans": "off", "max_parallel_workers_per_gather": "0", "jit": "off",
}  # fmt: skip
ATTEMPTS = 8

BY_INDEX = [
    ("n between $1 and $1 + 200", "100"), ("t = $1", "'animal 77'"), ("p <@ $1::box", "'(0,0),(20,20)'"), ("a @> array[$1::integer]", "7"),
    ("r && int4range($1, 9)", "5"), ("i <<= $1::inet", "'10.0.7.0/24'"), ("d < date '2026-01-01' + $1::integer", "60"),
    ("lower(t) < $1 and n > 100", "'animal 4'"), ("id = $1", "1000"), ("p ~= $1::point", "'(3,4)'"),
]  # fmt: skip
"""Conditions that an index answers each, and a value: the plans are kept."""

_SHARED = (
    "select classid::int8, objid::int8, objsubid, refclassid::int8, refobjid::int8, deptype::text from pg_shdepend "
    "where dbid = %s order by 1, 2, 3, 4, 5, 6"
)


class Rounds:
    """A template, a baseline and a lease of one schema, sessions that stay, and what they have to see.

    Args:
        plants: bugs that are compiled into the module, see ``test_rewind_planted``.
        company: somebody else may write to the lease between a rewind and the comparison (autovacuum): what differs is
            compared again after another rewind.
    """

    hole = True

    def __init__(
        self, server: Server, seed: int, plants: tuple[str, ...] = (), *, company: bool = False
    ) -> None:
        self.server, self.seed, self.company = server, seed, company
        self.schema: Schema = enlarged(deterministic(generate_schema(seed)))
        self.name = f"rounds_{seed}"
        self.admin = make_databases(server, self.name, self.schema.sql)
        self.sessions: list[Session | None] = [None] * (CONNECTIONS + 1)
        self.done: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        names = [table.name for table in self.schema.tables]
        self.tables = [*sorted(set(names)), "audit", "seen", "zoo_seen", "toasty"]
        self.probes = self._probes()
        fresh = f"{self.name}_fresh"
        drop(self.admin, fresh)
        clone(self.admin, f"{self.name}_t", fresh)
        with Session.connect(server.dsn(fresh, "app"), application_name="app", settings=SETTINGS) as session:
            self.prepare(session)
            self.wanted = self.look(session)
            self.wanted_probes = self.probe(session)
        drop(self.admin, fresh)
        self.rewinder = Rewinder(server, self.name, f"{self.name}_z", plants)
        self.wanted_shared = self.shared(self.rewinder.base)

    # --- sessions ---

    def session(self, number: int) -> Session:
        found = self.sessions[number]
        if found is not None and not found.closed:
            if found.connection.info.transaction_status.name == "INERROR":
                found.execute("rollback")
            return found
        user = "postgres" if number == SUPERUSER else "app"
        found = Session.connect(self.server.dsn(self.name, user), application_name="app", settings=SETTINGS)
        try:
            if number != SUPERUSER:
                self.prepare(found)
        except BaseException:
            found.close()
            raise
        self.sessions[number] = found
        return found

    def kept(self) -> Iterator[tuple[int, Session]]:
        for number, session in enumerate(self.sessions):
            if session is not None and not session.closed:
                yield number, session

    def close(self) -> None:
        try:
            for _, session in self.kept():
                session.close()
            for suffix in ("", "_t", "_z", "_fresh"):
                drop(self.admin, self.name + suffix)
        finally:
            self.log_out()

    def log_out(self) -> None:
        """Close all sessions, of a server that may be gone: one that is not is told of as a leak, in another test."""
        for session in (*(session for _, session in self.kept()), self.rewinder.admin, self.admin):
            session.close()

    # --- what sessions see ---

    def prepare(self, session: Session) -> None:
        """Statements and plans that this session goes on using, whatever is rewound."""
        session.execute("prepare put (text) as insert into base (v) values ($1)")
        session.execute(
            "prepare look as select count(*), 'sad'::mood::text, (select max(id) from part), "
            "(select (row(1, 'x')::pair).t) from cat"
        )
        for number, table in enumerate(self.tables):
            # One row each, as a text: the rows in their order, from where they lie.
            session.execute(
                f"prepare all_{number} as select count(*) || md5(coalesce(string_agg(ctid::text || t::text, '|'), '')) from only {table} t"
            )
        session.execute("set plan_cache_mode = force_generic_plan")
        session.execute("set enable_seqscan = off")
        for number, (condition, parameter) in enumerate(BY_INDEX):
            session.execute(
                f"prepare by_{number} as select count(t), sum(id), min(n), max(n) from zoo where {condition}"
            )
            session.rows(f"execute by_{number}({parameter})")
        session.execute("reset enable_seqscan")

    def look(self, session: Session) -> list[object]:
        """What a session sees of everything: by its cached plans, by indexes, through functions."""
        found: list[object] = [session.value(f"execute all_{number}") for number in range(len(self.tables))]
        found += [
            session.rows(f"execute by_{number}({parameter})")
            for number, (_, parameter) in enumerate(BY_INDEX)
        ]
        found.append(session.rows("execute look"))
        found.append(session.value("select counted()"))
        found += [
            session.rows(f"select last_value, log_cnt, is_called from {name}")
            for name in self.schema.sequences
        ]
        found.append(session.rows("select loid::int8, pageno, md5(data) from pg_largeobject_metadata m, "
                                  "lateral (select m.oid as loid, 0 as pageno, lo_get(m.oid) as data) l order by 1"))  # fmt: skip
        return found

    def _probes(self) -> list[str]:
        """Statements of the next test: where its rows come to lie, and what its sequences give."""
        maker = Maker(random.Random(self.seed), self.schema)
        seen: set[str] = set()
        statements = []
        for table in self.schema.tables:
            if table.name not in seen:
                seen.add(table.name)
                statements.append(f"{maker.insert(table, rows=2)} returning ctid::text, {table.key}::text")
        statements += [f"select nextval('{name}')" for name in self.schema.sequences]
        statements += [
            "update zoo set n = 3 where id in (5, 700) returning ctid::text",
            "update filled set v = repeat('q', 300) where id in (7, 8) returning ctid::text",
            "insert into toasty select 4000, v from toasty where id = 1 returning ctid::text, length(v)",
        ]
        return statements

    def probe(self, session: Session) -> list[object]:
        found: list[object] = []
        for statement in self.probes:
            try:
                found.append(session.rows(statement))
            except ServerRefused as error:
                found.append(error.sqlstate)
        return found

    def shared(self, database: int) -> set[tuple[object, ...]]:
        return set(self.admin.rows(_SHARED, (database,)))

    # --- a round ---

    def perform(self, operation: Operation) -> bool:
        """Whether all of it went through."""
        try:
            session = self.session(operation.connection)
            if operation.copy is not None:
                statement, data = operation.copy
                with session.connection.cursor() as cursor, cursor.copy(statement) as copy:
                    copy.write(data)
            for statement in operation.statements:
                session.execute(statement.replace("{db}", self.name))
        except (ServerRefused, psycopg.Error):
            return operation.kind == "failed"
        except ServerLost as error:
            self.answers[f"lost: {str(error)[:80]}"] += 1
            return False
        self.done[operation.kind] += 1
        return True

    def settle(self, answer: Answer | None = None) -> None:
        """Nobody is in the way any more: transactions are rolled back, prepared ones too, advisory locks let go."""
        for _, session in self.kept():
            with suppress(ServerLost):
                session.execute("rollback")
                session.execute("select pg_advisory_unlock_all()")
                if answer is not None and answer.status == "temporary":
                    session.execute("discard temp")
        gids = self.admin.column("select gid from pg_prepared_xacts where database = %s", (self.name,))
        if gids:
            with self.server.session(self.name) as inside:
                for gid in gids:
                    inside.execute(f"rollback prepared '{gid}'")

    def rewind(self) -> Answer:
        """Until it is done, or rows have to do it."""
        answer = self.rewinder.rewind()
        for _ in range(ATTEMPTS):
            if answer.status in ("nothing", "rewound", "rows"):
                break
            self.answers[f"first {answer.status}"] += 1
            self.settle(answer)
            again = self._with_temporary(answer) if answer.status == "temporary" else self.rewinder.rewind()
            answer = again
        self.answers[answer.status + (f": {answer.why}" if answer.status == "rows" else "")] += 1
        return answer

    def _with_temporary(self, answer: Answer) -> Answer:
        """Namespaces of kept sessions: where they are empty and the baseline has them, they are no hindrance; else the sessions end."""
        spaces = [int(oid) for oid in answer.temporary]
        question = "select count(*) from pg_namespace where oid = any(%s::oid[])"
        with self.server.session(self.name) as inside, self.server.session(f"{self.name}_z") as baseline:
            used = inside.value(
                "select exists (select from pg_depend where refclassid = 'pg_namespace'::regclass and refobjid = any(%s::oid[]))",
                (spaces,),
            )
            known = baseline.value(question, (spaces,)) == len(spaces)
        if known and not used:
            answer = self.rewinder.rewind(spaces)
        if answer.status == "temporary":
            for number, session in self.kept():
                session.close()
                self.sessions[number] = None
            self._wait_for_ends()
            answer = self.rewinder.rewind()
        return answer

    def _wait_for_ends(self) -> None:
        for _ in range(500):
            if not self.admin.value(
                "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'",
                (self.name,),
            ):
                return
            self.admin.rows("select pg_sleep(0.01)")

    def round(self, seed: int, operations: list[Operation], *, thorough: bool | None = None) -> list[str]:
        """Write, rewind; what differs from the baseline, or from what a fresh clone shows.

        Args:
            thorough: flush and compare the files, check with amcheck and in a new session; None: sometimes.
        """
        rng = random.Random(seed)
        found = []
        if rng.random() < 0.35:
            number = rng.randrange(CONNECTIONS)
            with suppress(ServerLost):
                seen = self.probe(self.session(number))
                if seen != self.wanted_probes:
                    found += [
                        f"the next test, session {number}: {statement[:120]}: {mine} instead of {theirs}"
                        for statement, mine, theirs in zip(self.probes, seen, self.wanted_probes, strict=True)
                        if mine != theirs
                    ]
        for operation in operations:
            self.perform(operation)
        if rng.random() < 0.7:
            self.settle()
        try:
            answer = self.rewind()
        except ServerRefused as error:
            self.reclone()
            if "has already been removed" in str(error):
                self.answers["rows: the log was recycled"] += 1
                return found
            return [*found, f"the rewind fails: {error}"]
        except ServerLost as error:
            self.recover()
            return [*found, f"the rewind loses its session: {error}"]
        if answer.status == "rows":
            self.reclone()
            return found
        if answer.status not in ("nothing", "rewound"):
            self.reclone()
            return [*found, f"the rewind ends in {answer.values}"]
        dice = rng.random()
        thorough = dice < 0.2 if thorough is None else thorough
        differences = self.compare(answer, thorough, new=dice < 0.5)
        for _ in range(ATTEMPTS):
            if not differences or not self.company:
                break
            answer = self.rewind()
            differences = self.compare(answer, thorough, new=dice < 0.5)
        return found + differences

    @staticmethod
    def harmless(one: Difference) -> bool:
        """Whether a difference may be there."""
        return False

    def compare(self, answer: Answer, thorough: bool, *, new: bool = True) -> list[str]:
        rewinder = self.rewinder
        found = []
        try:
            differences = rewinder.differences(hole=self.hole)
            found += [f"page: {one}" for one in differences if not self.harmless(one)]
        except ServerRefused as error:
            found.append(f"pages cannot be read: {error}")
        found += self._shared(answer)
        if thorough:
            self.admin.execute("checkpoint")
            lease = folder(self.admin, self.server.data, rewinder.oid)
            baseline = folder(self.admin, self.server.data, rewinder.base)
            differences = compare_files(lease, baseline, rewinder.relations, hole=self.hole)
            found += [f"file: {one}" for one in differences if not self.harmless(one)]
        for number, session in self.kept():
            if number == SUPERUSER:
                continue
            with suppress(ServerLost):
                session.execute("rollback")
            try:
                found += self._seen(f"session {number}", self.look(session))
            except ServerRefused as error:
                found.append(f"session {number} cannot go on: {error}")
            except ServerLost:
                session.close()
        if new or thorough:
            found += self._anew(thorough)
        return found

    def _shared(self, answer: Answer) -> list[str]:
        """Dependencies on roles are the server's: the caller is told that they were written, and puts them back."""
        seen = self.shared(self.rewinder.oid)
        if seen == self.wanted_shared:
            return []
        self._put_back_shared()
        if answer.shared:
            self.answers["dependencies on roles put back"] += 1
            return []
        return [f"shared: {sorted(seen ^ self.wanted_shared)[:5]} and nobody was told"]

    def _put_back_shared(self) -> None:
        with self.server.session(settings={"allow_system_table_mods": "on"}) as session:
            session.execute("delete from pg_shdepend where dbid = %s", (self.rewinder.oid,))
            session.execute(
                "insert into pg_shdepend select %s, classid, objid, objsubid, refclassid, refobjid, deptype from pg_shdepend where dbid = %s",
                (self.rewinder.oid, self.rewinder.base),
            )

    def _seen(self, whose: str, seen: list[object]) -> list[str]:
        names = [
            *self.tables,
            *(condition for condition, _ in BY_INDEX),
            "look",
            "counted()",
            *self.schema.sequences,
            "large objects",
        ]
        return [
            f"{whose} sees of {name} {mine} instead of {theirs}"
            for name, mine, theirs in zip(names, seen, self.wanted, strict=True)
            if mine != theirs
        ]

    def _anew(self, thorough: bool) -> list[str]:
        found = []
        try:
            with Session.connect(
                self.server.dsn(self.name, "app"), application_name="app", settings=SETTINGS
            ) as session:
                self.prepare(session)
                found += self._seen("a new session", self.look(session))
            if thorough:
                found += self._amcheck()
        except (ServerRefused, ServerLost) as error:
            found.append(f"a new session cannot be had: {error}")
        return found

    def _amcheck(self) -> list[str]:
        """The extension is made for it in the lease, and rolled back: the next rewind undoes what is left of that."""
        found = []
        with self.server.session(self.name) as session:
            session.execute("begin")
            session.execute("create extension if not exists amcheck")
            names = session.column(
                "select c.oid::regclass::text from pg_class c where relkind in ('r', 'm', 't') and relpersistence <> 't' "
                "and not relisshared"
            )
            for name in names:
                try:
                    found += [
                        f"amcheck: {name}: {row}"
                        for row in session.rows(
                            f"select blkno, offnum, msg from verify_heapam('{ident_of(name)}')"
                        )
                    ]
                except ServerRefused as error:
                    found.append(f"amcheck: {name}: {error}")
                    break
            for name in session.column(
                "select i.oid::regclass::text from pg_class i join pg_am a on a.oid = relam where relkind = 'i' "
                "and amname = 'btree' and relpersistence <> 't' and not relisshared"
            ):
                try:
                    session.rows(f"select bt_index_check('{ident_of(name)}', true)")
                except ServerRefused as error:
                    found.append(f"amcheck: {name}: {error}")
                    break
            session.execute("rollback")
        return found

    def reclone(self) -> None:
        """A fresh lease; the sessions end."""
        for number, session in self.kept():
            session.close()
            self.sessions[number] = None
        drop(self.admin, self.name)
        clone(self.admin, f"{self.name}_t", self.name)
        self.rewinder.forget()
        self.rewinder.start()

    def recover(self) -> None:
        """After a crash of the server: new sessions, and a fresh lease, whatever the old one is."""
        self.admin.close()
        for _ in range(300):
            try:
                self.admin = self.server.session()
                break
            except (ServerRefused, ServerLost):
                time.sleep(0.1)  # it recovers
        self.rewinder.admin.close()
        self.rewinder.connect()
        self.rewinder.know()
        self.reclone()

    def shrink(self, seed: int, operations: list[Operation], attempts: int = 40) -> list[Operation]:
        """Leave out what the failure does not need; all of it where it does not come again."""

        def fails(candidate: list[Operation]) -> bool:
            self.reclone()
            return bool(self.round(seed, candidate, thorough=True))

        if not fails(operations):
            return operations
        while attempts > 0:
            for candidate in smaller(operations):
                attempts -= 1
                if fails(candidate):
                    operations = candidate
                    break
            else:
                break
        self.reclone()
        return operations


def ident_of(name: str) -> str:
    """A name that regclass printed, inside a literal."""
    return name.replace("'", "''")
