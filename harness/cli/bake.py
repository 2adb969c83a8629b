"""``bake``: a migrated server, kept as a data directory or an image, so that later ones start from it."""

from __future__ import annotations

import logging
import time
from typing import Any

import click

from harness.cli.context import Context
from harness.cli.options import flag, json_flag
from harness.errors import ConfigError
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
"""


PARAMETERS: list[click.Parameter] = [
    flag("--list", help="only show what is baked"),
    flag("--rebuild", help="bake again although nothing changed"),
    flag("--push", help="put the image into baked_repository, where it is not there yet"),
    json_flag(),
]


def run(context: Context) -> int:
    """Print what later servers start from."""
    console = context.console
    if getattr(context.arguments, "list", False):
        return _list(context, bake.Baker(context.project, registry.choose(context.project)).store.list())
    rebuild, push = (bool(getattr(context.arguments, word, False)) for word in ("rebuild", "push"))
    if push and not context.settings.baked_repository:
        raise ConfigError(
            "bake --push: no repository is named to push to: "
            'baked_repository = "registry.example/pg-harness", or PGHARNESS_BAKED_REPOSITORY',
            key="baked_repository",
            origin="--push",
        )
    _, baker, baked = bake.Baker.with_backend(
        context.project, rebuild=rebuild, push=push, progress=console.progress
    )
    told = {**_told(baked.snapshot), "built": baked.built, "fetched": baked.fetched}
    answer = told["name"]
    if push:
        shared, pushed = baker.push(baked, replace=rebuild)
        answer = shared.reference
        told |= {"pushed": pushed, "repository": shared.repository, "digest": shared.digest}
        did = "pushed as" if pushed else "nothing is pushed: these migrations are there already as"
        logger.info("bake: %s %s:%s", did, shared.repository, shared.key)
    if context.json:
        console.json({**told, "seconds": round(baked.seconds, 3)})
    else:
        console.answer(answer)
    return 0


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
