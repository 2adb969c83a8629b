# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
# ruff: noqa: UP031 -- % runs on any Python 3
"""What the tasks with SQLAlchemy share: no connection but to the database that is to be migrated, and one head only."""

from sqlalchemy import event
from sqlalchemy.engine import Engine


class Refused(Exception):
    """A reason to refuse; see main.py."""

    needs_no_traceback = True


def watch(parameters, who, remedy):
    """Refuse any other connection; return the list that each one that is made is added to.

    Without this, a hard-coded URL would have its real database migrated.
    """
    connected = []

    def guard(dialect, record, arguments, keywords):
        connected.append(1)
        if dialect.name != "postgresql":
            raise Refused("%s connects with %s, not with PostgreSQL: %s" % (who, dialect.name, remedy))
        database = keywords.get("dbname") or keywords.get("database")
        host = keywords.get("host")
        port = keywords.get("port")
        wrong = (
            (database is not None and database != parameters["database"])
            or (host is not None and str(host) != parameters["host"])
            or (port is not None and str(port) != parameters["port"])
        )
        if wrong:
            raise Refused(
                "%s connects to the database %r on %s:%s, which is not the one to be migrated; "
                "nothing was done there. Remedy: %s" % (who, database, host, port, remedy)
            )

    event.listen(Engine, "do_connect", guard)
    return connected


def one_head(script, otherwise):
    """Refuse a history without revisions, or with several heads.

    Args:
        otherwise: the entry of the settings that takes all of them.
    """
    heads = script.get_heads()
    if not heads:
        raise Refused("there are no revisions in %s" % script.dir)
    if len(heads) > 1:
        lines = ["there are %d heads, so 'upgrade head' has no meaning:" % len(heads)]
        for head in sorted(heads):
            revision = script.get_revision(head)
            lines.append("  %s  %s  (%s)" % (head, revision.doc, revision.path))
        lines.append(otherwise)
        raise Refused("\n".join(lines))
