"""Company on the same server: what goes on in other databases while a lease is rewound."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fix_reset_servers import Server

from harness.errors import ServerLost, ServerRefused
from harness.postgres.session import Session

NAME = "company"
_TABLE = (
    "create table if not exists big (id serial primary key, v text); "
    "insert into big (v) select repeat('c', 400) from generate_series(1, 6000) i where not exists (select from big)"
)


def _checkpoints(session: Session, rng: random.Random) -> None:
    """Files that were dropped are unlinked, pages are written."""
    session.execute("checkpoint")
    session.rows(f"select pg_sleep({rng.random() / 30})")


def _reads(session: Session, rng: random.Random) -> None:
    """One long statement, which looks at no message: it needs buffers, and writes whatever lies in them to files that it keeps open."""
    session.rows(
        "select count(*) from (select count(*) from big b, generate_series(1, 40) s where s > length(b.v) group by s) t"
    )


def _writes(session: Session, rng: random.Random) -> None:
    """Records of others in the window."""
    first = rng.randint(1, 5000)
    session.execute(f"update big set v = v where id between {first} and {first + rng.randint(1, 300)}")


def _files(session: Session, rng: random.Random) -> None:
    """Files made and dropped, in another database."""
    name = f"x{rng.randint(1, 10**9)}"
    session.execute(f"create table {name} (id serial primary key, v text)")
    session.execute(f"insert into {name} (v) values ('x')")
    session.execute(f"drop table {name}")


KINDS: dict[str, Callable[[Session, random.Random], None]] = {
    "checkpoints": _checkpoints, "reads": _reads, "writes": _writes, "files": _files,
}  # fmt: skip


@contextmanager
def company(server: Server, *kinds: str) -> Iterator[None]:
    """Each of these goes on until the end, in a session of its own."""
    with server.session() as admin:
        if not admin.rows("select 1 from pg_database where datname = %s", (NAME,)):
            admin.execute(f"create database {NAME} template template0")
    with server.session(NAME) as session:
        session.script(_TABLE)
    ended = threading.Event()

    def go_on(act: Callable[[Session, random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        while not ended.is_set():
            try:
                with server.session(NAME) as session:
                    while not ended.is_set():
                        act(session, rng)
            except (ServerLost, ServerRefused):
                ended.wait(0.1)  # the server was killed, and comes back

    threads = [
        threading.Thread(target=go_on, args=(KINDS[kind], number), daemon=True)
        for number, kind in enumerate(kinds)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
