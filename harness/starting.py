"""Starting a server: what is asked of a backend, alone, and what else is tried where Docker cannot."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from harness.backends import defaults, select
from harness.backends.base import Backend, ServerInfo, ServerRequest
from harness.config.project import file_lock
from harness.config.settings import Settings
from harness.errors import BackendUnavailable, ServerLost
from harness.hint import Hint
from harness.telling import Story

LOCK_EXTRA = 600.0
"""Seconds, beyond ``start_timeout``, to wait for another process that may be pulling an image."""


def locked(hint: Hint, settings: Settings, purpose: str) -> AbstractContextManager[None]:
    """Alone with the server of this checkout and purpose.

    Raises:
        PoolTimeout: another process was busy with it for too long.
    """
    # A worker's own server has one owner, and a lock file for each would stay for ever.
    if "-" in purpose:
        return nullcontext()
    return file_lock(
        hint.path.with_suffix(".lock"),
        timeout=settings.start_timeout + LOCK_EXTRA,
        waiting_for=f"the {purpose} server of this checkout",
    )


def request(settings: Settings, project_id: str, purpose: str, ttl: float | None) -> ServerRequest:
    """What is asked of a backend; its password and id are made here.

    Args:
        project_id: ten hex digits of the checkout.
        ttl: seconds; for ``up``, None means that it never ends itself.
    """
    return ServerRequest(
        project=project_id,
        purpose=purpose,
        server_id=str(uuid.uuid4()),
        root=Path(settings.root).resolve(),
        password=secrets.token_hex(24),
        settings=defaults.throwaway(max_connections=settings.max_connections, user=settings.postgres),
        storage=settings.storage,
        ttl=ttl if purpose == "up" else (ttl or settings.ttl),
        start_timeout=settings.start_timeout,
    )


def gone_again(info: ServerInfo, why: str) -> ServerLost:
    """What to raise where a server that has just been started does not answer."""
    return ServerLost(f"the server {info.description} was started and is gone again: {why}")


def instead(
    error: BackendUnavailable, backend: Backend, settings: Settings, environ: Mapping[str, str], story: Story
) -> Backend:
    """Local binaries, where nobody chose Docker or an image and the default one cannot be had.

    Raises:
        BackendUnavailable: the error, where Docker or the image is meant: another server in its place would be a
            surprise; with what local binaries lack, where there are none.
    """
    if settings.backend != "auto" or backend.name != "docker" or settings.origin("image") != "default":
        raise error
    other = select.named("process", settings, environ)
    try:
        select.usable(other)
    except BackendUnavailable as second:
        raise BackendUnavailable(
            error.message.splitlines()[0],
            checked=[*error.checked, second.message.splitlines()[0], *second.checked],
            remedies=[*error.remedies, *second.remedies],
        ) from error
    story(f"docker: {error.message.splitlines()[0]}")
    story("backend: process instead, because neither a backend nor an image is named in the settings")
    return other
