"""Hand over what the admin created to the application's role."""

from __future__ import annotations

from harness.catalog.session import Session, ident

# FirstNormalObjectId (src/include/access/transam.h): what initdb made lies below.
_FIRST_OWN_OID = 16384

_FOLLOWS_A_TABLE = (
    "relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass"
    " and d.objid = pg_class.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i'))"
)

# (catalog, owner's column, further condition). Event triggers and foreign-data wrappers need a superuser as
# their owner, so they stay with the admin. What belongs to an extension stays with the extension.
_OWNED = (
    ("pg_namespace", "nspowner", "nspname !~ '^pg_'"),
    # Indexes and TOAST tables follow their tables; so do sequences of serial and identity columns.
    ("pg_class", "relowner", f"relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and not ({_FOLLOWS_A_TABLE})"),
    ("pg_proc", "proowner", "true"),
    # A table's row type and an array follow; composite types are in pg_class.
    ("pg_type", "typowner", "typrelid = 0 and typelem = 0 and typtype <> 'm'"),
    ("pg_operator", "oprowner", "true"),
    ("pg_opclass", "opcowner", "true"),
    ("pg_opfamily", "opfowner", "true"),
    ("pg_collation", "collowner", "true"),
    ("pg_conversion", "conowner", "true"),
    ("pg_ts_dict", "dictowner", "true"),
    ("pg_ts_config", "cfgowner", "true"),
    ("pg_statistic_ext", "stxowner", "true"),
    ("pg_foreign_server", "srvowner", "true"),
    ("pg_largeobject_metadata", "lomowner", "true"),
    ("pg_publication", "pubowner", "not puballtables"),
)

# A large object's address names the catalog of its pages (LargeObjectRelationId).
_CLASSES = {"pg_largeobject_metadata": "pg_largeobject"}

# pg_identify_object's word → the word that ALTER takes, where they differ.
_ALTER_WORDS = {
    "composite type": "type",
    "foreign server": "server",
    "server": "server",
    "statistics object": "statistics",
    "aggregate": "aggregate",
}


def give_to(session: Session, role: str) -> int:
    """Make ``role`` the owner of everything in this database that belongs to the session's own role.

    ``REASSIGN OWNED`` refuses the bootstrap superuser, and takes extensions along.

    Returns:
        How many objects changed hands.

    Raises:
        ServerRefused: the session may not give one of them away.
    """
    listing = " union all ".join(
        f"select '{_CLASSES.get(catalog, catalog)}'::regclass as class, oid, {owner} as owner from pg_catalog.{catalog} where {condition}"
        for catalog, owner, condition in _OWNED
    )
    # By OID: a schema before what is in it, a type before its users.
    rows = session.rows(
        "select (o).type, (o).identity from ("
        "  select pg_identify_object(l.class, l.oid, 0) as o, l.oid"
        f" from ({listing}) as l"
        "  where l.owner = (select oid from pg_roles where rolname = current_user)"
        "  and l.oid >= %s"
        "  and not exists (select from pg_depend d where d.classid = l.class and d.objid = l.oid"
        "    and d.deptype = 'e')"
        ") as objects order by oid",
        (_FIRST_OWN_OID,),
    )
    for kind, identity in rows:
        word = _ALTER_WORDS.get(kind, kind)
        session.execute(f"alter {word} {identity} owner to {ident(role)}")
    return len(rows)
