"""The kinds of migration sources: what may stand in ``migrations``, and the code that each stands for.

A kind is one :class:`Kind`, ours in :data:`KINDS`, others' named by an installed package's entry point in the
group ``pg_harness.migrations``. Nothing else knows the words: settings, ``init``, ``doctor`` and messages ask
here. The code is named by strings, so that reading settings imports no source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.extensions import Extensions, resolved
from harness.config.settings import Settings, SourceSpec
from harness.config.sources import parse_spec
from harness.errors import ConfigError, closest

if TYPE_CHECKING:
    from harness.migrations.detect import Finding, Tree
    from harness.migrations.port import MigrationSource

GROUP = "pg_harness.migrations"
"""The entry points of other packages: the word, and ``module:KIND``."""


@dataclass(frozen=True)
class Kind:
    """One kind of migration source.

    Attributes:
        form: how it is written in the settings, for messages, for instance ``"sql:db/migrations"``.
        source: called with ``(spec, root, cache=…, environment=…)`` as :class:`~harness.migrations.port.Configured`
            is, gives the source; or ``"module:name"`` of it, imported when a source is wanted.
        argument: regular expression that all of the text behind the colon matches; where it matches nothing
            too, the word may stand alone.
        argument_form: the argument's parts in words, for messages.
        noun: what it names, for messages: "for NOUN write …".
        watch: whether the user may say which files decide the outcome (``watch = [globs]``).
        detect: finds such sources in a project, without importing or running anything of it; or
            ``"module:name"`` of it.
        looks_for: what ``detect`` looks for, one line each.
        resembles: regular expression of a text without a word that probably means this kind.
    """

    form: str
    source: str | Callable[..., MigrationSource]
    argument: str = r".+"
    argument_form: str = ""
    noun: str = "a source"
    watch: bool = False
    detect: str | Callable[[Tree], Iterable[Finding]] | None = None
    looks_for: tuple[str, ...] = ()
    resembles: str = r"(?!)"

    def fits(self, argument: str) -> bool:
        """Whether that may stand behind the colon."""
        return re.fullmatch(self.argument, argument, re.DOTALL) is not None


_NAMES = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"

# The order is that of two findings that are equally likely: what a tool runs comes before its SQL files.
KINDS: Mapping[str, Kind] = {
    "alembic": Kind(
        "alembic or alembic:alembic.ini",
        "harness.migrations.tools.alembic:AlembicSource",
        argument=r".*",
        noun="Alembic",
        watch=True,
        detect="harness.migrations.detect:alembic",
        looks_for=("Alembic: alembic.ini, or [tool.alembic] in pyproject.toml",),
    ),
    "flask": Kind(
        "flask or flask:migrations",
        "harness.migrations.tools.flask:FlaskSource",
        argument=r".*",
        noun="Flask-Migrate",
        watch=True,
        detect="harness.migrations.detect:flask",
        looks_for=("Flask-Migrate: alembic.ini and an env.py with current_app",),
    ),
    "django": Kind(
        "django or django:config.settings",
        "harness.migrations.tools.django:DjangoSource",
        argument=r".*",
        noun="Django",
        watch=True,
        detect="harness.migrations.detect:django",
        looks_for=("Django: manage.py, or DJANGO_SETTINGS_MODULE in [tool.pytest] or [tool.django]",),
    ),
    "sql": Kind(
        "sql:db/migrations",
        "harness.migrations.sql.source:SqlSource",
        noun="SQL files",
        detect="harness.migrations.sql.detect:detect",
        looks_for=(
            "Prisma: migrations/*/migration.sql",
            "Diesel: migrations/*/up.sql",
            "Flyway: V1__x.sql",
            "golang-migrate and sqlx: *.up.sql",
            "goose: -- +goose Up in *.sql",
            "dbmate: -- migrate:up in *.sql",
            "sql-migrate: -- +migrate Up in *.sql",
            "sqlx: migrations/*.sql beside a Cargo.toml with sqlx",
            "Supabase: supabase/migrations/*.sql",
            "plain SQL: *.sql in a folder named migrations, migrate, drizzle, sql, schema or db",
        ),
        resembles=r"(?!.*\.(?:dump|backup)$)(?:.*/.*|.*\.sql)",
    ),
    "dump": Kind(
        "dump:schema.sql",
        "harness.migrations.dump.source:DumpSource",
        noun="a dump",
        detect="harness.migrations.detect:dump",
        looks_for=("a dump: db/structure.sql, schema.sql",),
        resembles=r".*\.(?:dump|backup)",
    ),
    "command": Kind(
        "command:npx prisma migrate deploy",
        "harness.migrations.tools.command:CommandSource",
        noun="a command",
        watch=True,
        resembles=r".* .*",
    ),
    "python": Kind(
        "python:app.db:migrate",
        "harness.migrations.tools.python:PythonSource",
        argument=rf"{_NAMES}:{_NAMES}",
        argument_form="module, colon, function",
        noun="a callable",
        watch=True,
    ),
}
"""Word → kind, those that come with us."""


_EXTENSIONS = Extensions(GROUP, KINDS, Kind, noun="kind of migrations", key="migrations")


def kinds() -> Mapping[str, Kind]:
    """Word → kind, ours first, then those of installed packages.

    Raises:
        ConfigError: a package's kind cannot be imported, or takes a word that is in use.
    """
    return _EXTENSIONS.all()


def packages() -> Mapping[str, str]:
    """Word → the package that adds the kind, for people; ours are not in it."""
    return _EXTENSIONS.packages()


def read(value: object, origin: str, *, key: str = "migrations") -> SourceSpec:
    """One entry of ``migrations``, of a kind that there is; see :func:`harness.config.sources.parse_spec`.

    Raises:
        ConfigError: it is not of the form, or names a kind that does not exist; with the nearest right one.
    """
    spec = parse_spec(value, origin, key=key)
    check(spec)
    return spec


def check_settings(settings: Settings) -> None:
    """Refuse what :func:`load` would refuse, before any server is started.

    Raises:
        ConfigError: names file, key and the nearest right kind.
    """
    for database in settings.databases:
        # The seeds are the last of the migrations, where there are any.
        for spec in database.seeds if database.migrations is None else database.migrations:
            check(spec)


def check(spec: SourceSpec) -> Kind:
    """The kind of an entry, after a look at what follows its word.

    Raises:
        ConfigError: there is no such kind, or it is written in another way.
    """
    kind = _EXTENSIONS.find(spec.kind)
    if kind is None:
        everything = kinds()
        raise _wrong(
            spec,
            f"which begins with no known kind of source. {_nearest(spec, everything)}"
            f"Known: {'; '.join(known.form for known in everything.values())}.",
        )
    if not spec.argument and (":" in spec.text or not kind.fits("")):
        raise _wrong(spec, f"which lacks what follows the colon; it is written {kind.form}")
    if spec.argument and not kind.fits(spec.argument):
        parts = f" ({kind.argument_form})" if kind.argument_form else ""
        raise _wrong(spec, f"which does not fit; {kind.noun} is written {kind.form}{parts}")
    if spec.watch is not None and not kind.watch:
        raise _wrong(spec, f"with a watch; {spec.kind}: hashes its own files and takes no watch")
    return kind


def load(
    spec: SourceSpec, root: Path, *, cache: Path | None = None, environment: Mapping[str, str] | None = None
) -> MigrationSource:
    """The source of one entry; nothing is read yet.

    Args:
        root: the project's root; relative paths start here.
        cache: a folder for what sources learn of a project (which files a warm fingerprint has to look
            at); None: they ask a child process each time.
        environment: for child processes that only look (Django's settings are imported to learn which apps
            there are); DATABASE_URL and PG* in it are replaced, so that nothing can be reached with it.

    Raises:
        ConfigError: no such kind.
    """
    make = resolved(check(spec).source)
    source: MigrationSource = make(spec, root, cache=cache, environment=environment or {})
    return source


def _wrong(spec: SourceSpec, what: str) -> ConfigError:
    at = f"{spec.origin}: " if spec.origin else ""
    return ConfigError(
        f"{at}{spec.key} holds {spec.text!r}, {what}", key=spec.key, origin=spec.origin, value=spec.text
    )


def _nearest(spec: SourceSpec, known: Mapping[str, Kind]) -> str:
    if near := closest(spec.kind.lower(), known, cutoff=0.6):
        return f"The nearest is {near!r}: {known[near].form}. "
    for word, kind in known.items():
        if re.fullmatch(kind.resembles, spec.text, re.DOTALL):
            return f'For {kind.noun} write "{word}:{spec.text}". '
    return ""
