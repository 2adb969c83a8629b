"""``bake``: a migrated server, kept as a data directory or an image, so that later ones start from it."""

from __future__ import annotations

import logging
import time
from typing import Any

import click

from harness.cli.context import Context
from harness.cli.options import flag, json_flag
from harness.config import versions
from harness.config.project import Project
from harness.errors import ConfigError, HarnessError
from harness.runs import bake
from harness.servers import registry

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Migrate once in a server of its own, stop it, and keep it: as a data directory (process) or as a local image
pg-harness/baked:KEY (docker). With isolation = "server" each worker's server starts from it, `up` and `run`
use it where they must start a server. It is done by itself when it is needed; this does it beforehand, for
instance while a CI machine's image is built.

Without --list: bakes unless these migrations are baked already, and prints the directory or image. With
baked_repository an image of another machine's is pulled from there instead; --push puts this one there, unless
these migrations are there already, and prints what it is pulled by.

Where pg_version names several versions, the first is baked, or with --each-version all of them: a line for each.
"""


PARAMETERS: list[click.Parameter] = [
    flag("--list", help="only show what is baked"),
    flag("--rebuild", help="bake again although nothing changed"),
    flag("--push", help="put the image into baked_repository, where it is not there yet"),
    flag("--each-version", help="bake for each version in pg_version"),
    json_flag(),
]


def run(context: Context) -> int:
    """Print what later servers start from."""
    if getattr(context.arguments, "list", False):
        return _list(context, bake.Baker(context.project, registry.choose(context.project)).store.list())
    if getattr(context.arguments, "push", False) and not context.settings.baked_repository:
        raise ConfigError(
            "bake --push: no repository is named to push to: "
            'baked_repository = "registry.example/pg-harness", or PGHARNESS_BAKED_REPOSITORY',
            key="baked_repository",
            origin="--push",
        )
    if getattr(context.arguments, "each_version", False):
        return _each(context)
    if told := versions.told(context.settings):
        logger.info("bake: %s; --each-version bakes all of them", told)
    answer, made = _baked(context, context.project)
    if context.json:
        context.console.json(made)
    else:
        context.console.answer(answer)
    return 0


def _each(context: Context) -> int:
    """One after another; one that is not to be had is told, and the others go on."""
    made: list[dict[str, Any]] = []
    code = 0
    for version in versions.each(context.settings, "--each-version"):
        try:
            answer, told = _baked(context, versions.at(context.project, version))
        except HarnessError as error:
            context.console.error(f"PostgreSQL {version}: {error.full_text}")
            code = code or error.exit_code
            continue
        made.append({"pg_version": version, **told})
        if not context.json:
            context.console.answer(answer)
    if context.json:
        context.console.json(made)
    return code


def _baked(context: Context, project: Project) -> tuple[str, dict[str, Any]]:
    """Bake one, and push it where that is asked for; what it is called, and all that is told of it."""
    rebuild, push = (bool(getattr(context.arguments, word, False)) for word in ("rebuild", "push"))
    _, baker, baked = bake.Baker.with_backend(
        project, rebuild=rebuild, push=push, progress=context.console.progress
    )
    told = {**_told(baked.snapshot), "built": baked.built, "fetched": baked.fetched}
    answer = str(told["name"])
    if push:
        shared, pushed = baker.push(baked, replace=rebuild)
        answer = shared.reference
        told |= {"pushed": pushed, "repository": shared.repository, "digest": shared.digest}
        did = "pushed as" if pushed else "nothing is pushed: these migrations are there already as"
        logger.info("bake: %s %s:%s", did, shared.repository, shared.key)
    return answer, {**told, "seconds": round(baked.seconds, 3)}


def _list(context: Context, bases: Any) -> int:
    told = [_told(base) for base in sorted(bases, key=lambda base: base.used, reverse=True)]
    if context.json:
        context.console.json(told)
        return 0
    for base in told:
        days = (time.time() - base["used"]) / 86400
        context.console.answer(
            f"{base['name']}  {base['bytes'] / 1024**2:.0f} MB, used {days:.0f} days ago: {base['databases']}"
        )
    if not told:
        logger.info("nothing is baked yet")
    return 0


def _told(base: Any) -> dict[str, Any]:
    return {
        "name": base.name or base.ref,
        "key": base.key,
        "backend": base.backend,
        "bytes": base.size,
        "created": base.created,
        "used": base.used,
        "databases": base.facts.get("databases", ""),
        "sources": base.facts.get("sources", ""),
    }
