"""Somebody takes the call and says nothing: one patience for the whole command, and it says who did not answer."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fix_cli import MIGRATION, Project

PATIENCE = 45.0
"""Seconds that a command may take in all: the wait is 10, the rest is for a loaded machine."""


class Hole:
    """Takes calls and never answers.

    Attributes:
        first: when the first call came (``time.monotonic``); 0.0 before.
        calls: how many came.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        self.first = 0.0
        self.calls = 0
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                self._held.append(self._listening.accept()[0])
            except OSError:
                return
            self.first = self.first or time.monotonic()
            self.calls += 1

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)
        for held in self._held:
            held.close()


VERBS = ("up", "run -- true", "status", "doctor", "gc", "down", "down --all", "url", "logs", "reset", "psql")

Answers = dict[str, tuple[int, str, float, int]]
"""Command → exit code, what it said, seconds from its first call to its end, calls."""


@pytest.fixture
def ask(tmp_path: Path, folders: tuple[Path, Path]) -> Callable[..., Answers]:
    """Gives each command a hole and a checkout of its own, all at once: they would wait for each other else."""

    def one(words: str, environ: Callable[[int], dict[str, str]]) -> tuple[int, str, float, int]:
        root = tmp_path / words.replace(" ", "_")
        root.mkdir()
        project = Project(root, *folders)
        project.migrate("001_users.sql", MIGRATION)
        with closing(Hole()) as hole:
            done = project.run(*words.split(), **environ(hole.port))
            return done.returncode, done.stdout + done.stderr, time.monotonic() - hole.first, hole.calls

    def all_of(verbs: Sequence[str], environ: Callable[[int], dict[str, str]]) -> Answers:
        with ThreadPoolExecutor(len(verbs)) as threads:
            return dict(zip(verbs, threads.map(lambda words: one(words, environ), verbs), strict=True))

    return all_of


def test_a_daemon_that_never_answers(ask: Callable[..., Answers]) -> None:
    """It took 72 seconds: each question waited anew. And who found nothing said that there was nothing."""
    answers = ask(
        [*VERBS, "bake"],
        lambda port: {"PGHARNESS_BACKEND": "docker", "DOCKER_HOST": f"tcp://127.0.0.1:{port}"},
    )
    for words, (code, said, seconds, calls) in answers.items():
        assert code == 121, (words, said)
        assert re.search(r"the Docker daemon at tcp://127\.0\.0\.1:\d+ did not answer within", said), (
            words,
            said,
        )
        assert calls <= 2, words
        assert seconds < PATIENCE, words


def test_a_server_that_never_answers(ask: Callable[..., Answers]) -> None:
    answers = ask(
        VERBS, lambda port: {"PGHARNESS_SERVER_URL": f"postgresql://me:secret@127.0.0.1:{port}/postgres"}
    )
    for words, (code, said, seconds, calls) in answers.items():
        assert code == 121, (words, said)
        assert re.search(
            r"the server postgresql://me:\*\*\*@127\.0\.0\.1:\d+/postgres .* does not answer", said
        ), said
        assert calls <= 2, words
        assert seconds < PATIENCE, words
