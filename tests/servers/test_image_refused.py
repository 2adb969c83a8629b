"""An image that the registry does not give is asked for once in a run: where it is looked for twice, nobody waits twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, NotFound
from requests import Response

from harness.errors import BackendUnavailable
from harness.servers.docker import image
from harness.servers.docker.daemon import Daemon


class Registry:
    """Of a daemon's client: it has no image, and its registry cannot be reached."""

    def __init__(self) -> None:
        self.pulled: list[str] = []
        self.images = SimpleNamespace(get=self._get)
        self.api = SimpleNamespace(pull=self._pull)

    def _get(self, name: str) -> Any:
        response = Response()
        response.status_code = 404
        raise NotFound(f"no such image: {name}", response=response)

    def _pull(self, repository: str, **_: Any) -> Any:
        self.pulled.append(repository)
        raise APIError("no such host")


def test_it_is_pulled_once() -> None:
    registry = Registry()
    daemon = Daemon(registry, "127.0.0.1", "127.0.0.1", None, "", "unix:///nowhere")
    for _ in range(2):
        with pytest.raises(
            BackendUnavailable, match=r"postgres:17 is not on this Docker daemon .* no such host"
        ):
            image.ensure(daemon, "postgres:17")
    assert registry.pulled == ["postgres"]
    # Another one is another question.
    with pytest.raises(BackendUnavailable, match="postgres:16"):
        image.ensure(daemon, "postgres:16")
    assert registry.pulled == ["postgres", "postgres"]
