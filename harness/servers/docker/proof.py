"""What is looked at before an image of a registry is believed: by its metadata, and by the scripts that lie in it.

Whether its data holds the templates that it promises, a server that is started from it tells (:mod:`harness.runs.bake`).
What cannot be found out that way: what else its one layer of ours changes. So whoever may push is trusted (docs/threat-model.md).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from typing import Any

from harness.config.project import machine_id
from harness.servers.docker import container as container_
from harness.servers.docker import spec
from harness.servers.docker.daemon import Daemon, gone, translated
from harness.servers.docker.spec import LABEL

_MOST = 1 << 20
"""Bytes that a script may have: a file that never ends must not fill our memory."""


def against(daemon: Daemon, image: Any, base: Any, key: str) -> str:
    """What speaks against an image; empty: nothing.

    Args:
        image: as it was pulled.
        base: the image that the data must have been baked on, as this machine has it.
        key: what it was asked for by.

    Raises:
        BackendError: the daemon refused. ServerLost: it does not answer.
    """
    if (labels := image.labels or {}).get(f"{LABEL}.baked") != key:
        return f"its label {LABEL}.baked does not say {key}"
    return _metadata(image, base) or (
        "" if labels.get(spec.SCRIPTS) != spec.scripts_mark() else _scripts(daemon, image)
    )


def _metadata(image: Any, base: Any) -> str:
    for word in ("Os", "Architecture", "Variant"):
        if (image.attrs.get(word) or "") != (base.attrs.get(word) or ""):
            return f"it is for {_platform(image)}, and the image that it was to be baked on for {_platform(base)}"
    layers, below = (_layers(one) for one in (image, base))
    if layers[:-1] != below:
        return "it is not the image that it was to be baked on, with one layer more"
    # Containers inherit them, and other programs on the daemon's machine obey some.
    theirs, ours = ({n: v for n, v in (i.labels or {}).items() if not _own_label(n)} for i in (image, base))
    if theirs != ours:
        return f"it has other labels than the image that it was baked on: {_names(theirs, ours)}"
    theirs, ours = (
        {n: v for n, v in _variables(i).items() if not n.startswith("PGHARNESS_")} for i in (image, base)
    )
    if theirs != ours:
        return f"it has other variables than the image that it was baked on: {_names(theirs, ours)}"
    if _config(image).get("Volumes") != _config(base).get("Volumes"):
        return "it declares other volumes than the image that it was baked on"
    return ""


def _scripts(daemon: Daemon, image: Any) -> str:
    """A server of it would be started by the scripts that lie in it, for its label says that they are ours."""
    with translated("look into an image"):
        container = daemon.client.containers.create(
            image.id,
            command=[],
            entrypoint=["/bin/false"],
            network_mode="none",
            # Whoever finds it left over knows that nobody needs it.
            labels={
                f"{LABEL}.version-of": image.id,
                f"{LABEL}.asked-by": f"{os.getpid()} {machine_id()}",
            },
        )
    try:
        for name, ours in spec.script_files():
            if _read(container, f"{spec.HOME}/{name}") != ours:
                return f"the script {spec.HOME}/{name} in it is not ours, as its label says"
    finally:
        with translated(f"remove the container {container.short_id}"):
            container_.remove(daemon, container.id)
    return ""


def _read(container: Any, path: str) -> bytes | None:
    """A plain file; None where it is none, or is too large."""
    with translated(f"read from the container {container.short_id}"):
        try:
            chunks, told = container.get_archive(path)
        except Exception as error:
            if gone(error):
                return None
            raise
        if not isinstance(told, Mapping) or not 0 <= int(told.get("size") or 0) <= _MOST:
            chunks.close()
            return None
        content = container_.limited(chunks, _MOST)
    if content is None:
        return None
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member is not None and member.isreg() else None
        return None if file is None else file.read()


def _config(image: Any) -> Mapping[str, Any]:
    return image.attrs.get("Config") or {}


def _layers(image: Any) -> list[str]:
    return list((image.attrs.get("RootFS") or {}).get("Layers") or ())


def _variables(image: Any) -> dict[str, str]:
    pairs = (each.partition("=") for each in _config(image).get("Env") or ())
    return {name: value for name, _, value in pairs}


def _own_label(name: str) -> bool:
    return name.startswith(f"{LABEL}.") and name not in (f"{LABEL}.version-of", f"{LABEL}.asked-by")


def _names(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    # Names alone: a value may be a secret of whoever pushed it.
    found = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return ", ".join(ascii(name)[1:-1][:60] for name in found[:3])


def _platform(image: Any) -> str:
    return "/".join(
        str(image.attrs.get(word)) for word in ("Os", "Architecture", "Variant") if image.attrs.get(word)
    )
