"""What is there to be named, for completion. Looks at what runs; starts and changes nothing."""

from __future__ import annotations

import os
from contextlib import nullcontext

import click
from click.shell_completion import CompletionItem

from harness.cli import lookup
from harness.cli.console import Console
from harness.cli.context import Context
from harness.cli.parser import given
from harness.postgres.names import Kind
from harness.runs.places import places_on
from harness.sandbox.marks import TEMPLATE, stack
from harness.servers.records import Hint


def places(
    ctx: click.Context, incomplete: str, *, mine: bool = False, templates: bool = False
) -> list[CompletionItem]:
    """Words of databases, with what they are.

    Args:
        mine: only those of `up`.
        templates: templates too.
    """
    context = _context(ctx)
    purposes = [purpose for purpose in noted(context) if purpose == "up" or not mine]
    found = []
    # No purposes at all would mean all of them.
    # No daemon is asked whether a server's switch is alive.
    with lookup.servers(context, purposes=purposes, guard=False) if purposes else nullcontext(()) as servers:
        for server in servers:
            found += places_on(server)
    items = {
        place.words[0]: place.what
        for place in reversed(found)
        if (place.sandbox or not mine) and (place.kind is not Kind.TEMPLATE or templates)
    }
    return _items(dict(reversed(items.items())), incomplete)


def forks(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names of forks, where one is to be dropped; a new one has a name of its own."""
    context = _context(ctx)
    purposes = noted(context) if getattr(context.arguments, "drop", False) else []
    if "up" not in purposes:
        return []
    with lookup.servers(context, purposes=["up"], guard=False) as servers:
        found = {place.worker: place.what for server in servers for place in places_on(server) if place.fork}
    return _items(found, incomplete)


def marks(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names of the marks of the worker that is named already (else: of the first), the top one first."""
    context = _context(ctx)
    if not noted(context):
        return []
    with lookup.resolved(context, getattr(context.arguments, "worker", None)) as place:
        found = stack(place.session.link.session, place.session.project.id, place.databases)
    items = {mark.name: mark.created[:19].replace("T", " ") for mark in reversed(found)}
    if ctx.command.name == "reset":
        items[TEMPLATE] = "the migrations' state"
    return _items(items, incomplete)


def databases(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names of the databases of the settings."""
    return _items({database.name: "" for database in _context(ctx).settings.databases}, incomplete)


def servers(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """What the servers of this checkout are for: ``up``, ``run`` …"""
    return _items(dict.fromkeys(noted(_context(ctx)), ""), incomplete)


def noted(context: Context) -> list[str]:
    """What servers of this checkout are for that left a note of their address.

    Of one without a note the daemon would have to be asked, whose client takes longer to import than a person waits.
    """
    purposes = lookup.all_purposes(context)
    if context.settings.server_url is not None:
        return purposes
    return [purpose for purpose in purposes if Hint.of(context.project, purpose).path.exists()]


def _context(ctx: click.Context) -> Context:
    return Context(given(ctx), os.environ, Console(os.environ))


def _items(found: dict[str, str], incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(word, help=what or None) for word, what in found.items() if word.startswith(incomplete)
    ]
