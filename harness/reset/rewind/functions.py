"""The functions of the module: in a schema of their own, in the maintenance database of a server of ours.

The schema's comment says what was found out about the module on this server: it is asked once, by whoever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.postgres.session import Session, ident, literal
from harness.reset.rewind import fit

KNOW, REWIND = "pgh_know", "pgh_rewind"

_STATEMENTS = """
create schema if not exists {schema};
revoke all on schema {schema} from public;
create or replace function {schema}.pgh_know(
    baseline oid, nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[]
) returns void volatile strict language c as {path};
create or replace function {schema}.pgh_rewind({asked}, {answer}) volatile strict language c as {path};
create or replace function {schema}.pgh_rewind_to(
    {asked}, marks text[], above text[], {answer}
) volatile strict language c as {path};
create or replace function {schema}.pgh_mark(
    {asked}, marks text[], above text[], name text,
    nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[], {answer}
) volatile strict language c as {path};
create or replace function {schema}.pgh_forget(mark text) returns void volatile strict language c as {path};
revoke all on all functions in schema {schema} from public;
"""

_ASKED = """lease oid, baseline oid, since pg_lsn, own oid[], ours int[], empty oid[], most_bytes int8, most_pages int8"""

_ANSWER = """
    out status text, out why text, out upto pg_lsn, out xid oid, out busy int[], out prepared bool,
    out advisory text[], out shared oid[], out temporary oid[], out touched oid[],
    out read int8, out compared int8, out written int8, out truncated int8, out made int8, out dropped int8
"""


@dataclass(frozen=True)
class Found:
    """What there is of a module on a server.

    Attributes:
        said: the schema's comment: what :func:`say` noted; empty for none.
        digest: SHA-256 of the file that the functions are loaded from, 64 hex digits; empty where one is missing.
    """

    said: str = ""
    digest: str = ""


def look(session: Session, schemas: Sequence[str]) -> tuple[fit.Build, Mapping[str, Found]]:
    """How the server was built, and what there is of each of these schemas. One round trip.

    Raises:
        ServerRefused: the server may not read a file that functions are loaded from.
    """
    wanted = list(fit.WANTED)
    settings = ", ".join(f"coalesce(current_setting('{name}', true), '')" for name in wanted)
    rows = session.rows(
        f"select f.*, version(), {settings} from (select) one left join (select n.nspname,"
        " coalesce(obj_description(n.oid, 'pg_namespace'), ''),"
        # Read only where it matters: it is the file's bytes.
        " coalesce((select encode(sha256(pg_read_binary_file(min(p.probin), 0, 1 << 26, true)), 'hex')"
        f" from pg_proc p where p.pronamespace = n.oid and p.proname in ('{KNOW}', '{REWIND}')"
        " having count(*) = 2 and count(distinct p.probin) = 1), '')"
        " from pg_namespace n where n.nspname = any(%s)) f on true",
        (list(schemas),),
    )
    _, _, _, text, *values = rows[0]
    build = fit.Build(session.server_version, text, dict(zip(wanted, values, strict=True)))
    return build, {name: Found(said, digest) for name, said, digest, *_ in rows if name is not None}


def intact(session: Session, path: str, digest: str) -> bool:
    """Whether the server reads exactly these bytes there.

    Args:
        path: as the server's process resolves it.
        digest: 64 hex digits of SHA-256.
    """
    found = session.value(
        "select encode(sha256(pg_read_binary_file(%s, 0, 1 << 26, true)), 'hex')",
        (path,),
    )
    return bool(found == digest)


def create(session: Session, schema: str, path: str) -> None:
    """Make the schema and its functions, or let them load from that path.

    Raises:
        ServerRefused: the server cannot load the file.
    """
    session.script(_STATEMENTS.format(schema=ident(schema), path=literal(path), asked=_ASKED, answer=_ANSWER))


def say(session: Session, schema: str, text: str) -> None:
    """Note what was found out, for everybody who comes later. Outlives a crash."""
    session.script(
        # Else a crash of the server, which is what the note is about, takes it with it.
        f"set local synchronous_commit = on; comment on schema {ident(schema)} is {literal(text)}"
    )
