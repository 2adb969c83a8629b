"""Files that are read out of what somebody else has made: not more of them than such a file may have."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from harness.errors import BackendError
from harness.servers.docker import container, proof

CHUNK = 1 << 16


class Stub:
    """A container whose file of any name is what is given, as the daemon sends it: in chunks, of which it is known how many were read."""

    short_id = "0123456789ab"

    def __init__(self, archive: bytes, *, size: int, more: int = 0) -> None:
        self.read = 0
        self._archive, self._size, self._more = archive, size, more

    def get_archive(self, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        return self._chunks(), {"name": path.rpartition("/")[2], "size": self._size}

    def _chunks(self) -> Iterator[bytes]:
        yield self._archive
        for _ in range(self._more):
            self.read += CHUNK
            yield b"\0" * CHUNK


def archive(name: str, content: bytes | None) -> bytes:
    """A tar file of one file; None: of a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        if content is None:
            entry.type = tarfile.DIRTYPE
        entry.size = len(content or b"")
        tar.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


def test_a_script_is_read() -> None:
    stub = Stub(archive("entrypoint.sh", b"true\n"), size=5)
    assert proof._read(stub, "/pgharness/entrypoint.sh") == b"true\n"
    largest = b"#" * proof._MOST
    assert (
        proof._read(Stub(archive("watch.sh", largest), size=len(largest)), "/pgharness/watch.sh") == largest
    )


def test_a_folder_in_place_of_a_script_does_not_fill_our_memory() -> None:
    """Its size is told as that of the folder alone, and all that lies in it is sent."""
    stub = Stub(archive("entrypoint.sh", None), size=4096, more=1000)
    assert proof._read(stub, "/pgharness/entrypoint.sh") is None
    assert stub.read < 2 * proof._MOST


def test_a_folder_in_place_of_a_password_does_not_either() -> None:
    assert container.read_password(Stub(archive("password", b"secret\n"), size=7)) == "secret"
    stub = Stub(archive("password", None), size=4096, more=1000)
    with pytest.raises(BackendError, match="/pgharness/password in the container 0123456789ab is not what"):
        container.read_password(stub)
    assert stub.read < 2 * proof._MOST
