"""The description of the control interface, held against its answers; and what it says of each request that it forbids."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_control import Run

from harness.control import openapi
from harness.control.api import ControlApi

pytestmark = pytest.mark.server


@contextmanager
def leases_come_back(served: Run) -> Iterator[None]:
    """Else whoever asks for a third one waits for as long as the request says."""
    done = threading.Event()

    def give_back() -> None:
        while not done.wait(0.02):
            for number in (1, 2):
                served.serving.table.release(number)

    thread = threading.Thread(target=give_back)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_generated_requests_are_answered_as_described(served: Run, tmp_path: Path) -> None:
    """Schemathesis makes requests of the description, right ones and wrong ones, and checks status, headers and body of each answer."""
    words = [
        str(Path(sys.executable).with_name("st")), "run", f"{served.serving.server.url}/openapi.json",
        "--header", f"Authorization: Bearer {served.client.token}", "--max-examples", "25", "--seed", "1",
        "--phases", "coverage,fuzzing", "--request-timeout", "30", "--no-color", "--generation-database", "none",
        # 503 is an answer of the description; 500 is none, and found as such.
        "--exclude-checks", "not_a_server_error",
        # Ends the run's server.
        "--exclude-path", "/v1/stop",
    ]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PGHARNESS_")}
    with leases_come_back(served):
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=170, check=False, cwd=tmp_path, env=environ
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 10" in done.stdout
    # Whatever was asked, the interface goes on.
    served.client.ok("POST", "/v1/reset/1?to=template")


def test_every_route_is_described_and_every_description_is_a_route(served: Run) -> None:
    api = ControlApi(served.serving.table, {})
    routes = {
        (method.lower(), re.sub(r"\(\?P<(\w+)>[^)]+\)", r"{\1}", pattern.pattern))
        for method, pattern, _ in api._routes
    }
    paths = openapi.document()["paths"]
    described = {(method, path) for path, item in paths.items() for method in item}
    assert routes == described - {("get", "/healthz")}
    assert served.client("GET", "/openapi.json", token="").body == openapi.document()


def test_a_text_that_no_encoding_has_stops_nothing(served: Run) -> None:
    served.client.ok("POST", "/v1/lease", {"worker": "\ud800"})
    assert served.client.ok("GET", "/v1/status")["leases"][0]["worker"] == "\ud800"
