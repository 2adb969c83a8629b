"""xdist's controller: what its workers need, whether they fit the server, what a dead one leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.databases import freshness
from harness.errors import HarnessError
from harness.pytest_plugin.state import State, complain
from harness.runs import budget
from harness.runs.runfile import VARIABLE, RunFile

if TYPE_CHECKING:
    from harness.runs.run import Run

UNUSABLE = "postgresql://nobody@127.0.0.1:1/worker_without_pg_harness"
"""What a worker has until it has leased: where the plugin is switched off there, no test reaches a database."""


class Controller:
    """Hooks of xdist's controller."""

    def __init__(self, state: State) -> None:
        self._state = state

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_setupnodes(self, config: pytest.Config, specs: list[Any]) -> None:
        """Before this, ``-n auto`` is a word; from here on, the number of workers is known."""
        if config.getoption("dist", "no") == "each":
            # xdist gives every worker of a run the same test ids: outcomes, copies and waits are kept by id.
            raise pytest.UsageError(
                "pg-harness: --dist each runs every test once in each worker, and what a test leaves is told apart "
                "by its name only. Use another --dist, or switch the plugin off (-p no:pg_harness)."
            )
        for spec in specs:
            if not spec.popen or spec.via:
                raise pytest.UsageError(
                    f"pg-harness: the worker {spec.id} ({spec}) is not a process of this machine: its database "
                    f"would not be reachable. Use local workers (-n), or switch the plugin off (-p no:pg_harness)."
                )
        folder = self._state.project.state / "runs"
        try:
            files = []
            for run in self._state.runs:
                with self._state.telling:
                    run.check_room(len(specs))
                    places = run.place([spec.id for spec in specs])
                    found = budget.check(run.shared, len(specs)) if run.shared is not None else None
                if found is not None:
                    self._tell(found)
                files.append(self._run_file(run, len(specs), places))
            if several := self._state.several:
                versions = {str(file.settings.pg_version): str(file.path(folder)) for file in files}
                files[0] = replace(files[0], versions=versions, missing=several.missing)
            # First all others: who reads the first one looks for them.
            self._state.run_files = [file.write(folder) for file in reversed(files)]
        except HarnessError as error:
            raise pytest.UsageError(f"pg-harness: {error.full_text}") from None
        path = self._state.run_files[-1]
        if self._state.settings.hosts:
            # Here: runs without hosts import nothing of it.
            from harness.pytest_plugin.moving import Follower

            follower = Follower(lambda worker: RunFile.note_of(path, worker))
            config.pluginmanager.register(follower, "pg_harness_follower")
        for spec in specs:
            spec.env[VARIABLE] = str(path)
            spec.env["DATABASE_URL"] = UNUSABLE
        self._state.fill(len(specs))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """``-n auto`` may have come to nothing: then the tests run here after all.

        Raises:
            pytest.UsageError: there is no server for them, because workers were expected.
        """
        if session.config.pluginmanager.has_plugin("dsession"):
            return
        if self._state.lease is None:
            raise pytest.UsageError(
                'pg-harness: xdist has started no workers after all, and with isolation = "server", or hosts, its '
                "controller has no database. Say -n 0."
            )
        if freshness.of(self._state.settings).watches:
            self._state.lease.watch()

    def _tell(self, found: budget.Budget) -> None:
        """A small share is worth knowing before a test runs out of it."""
        each = found.per_worker // len(self._state.settings.databases)
        if each < budget.USUAL and "connections_per_worker" not in self._state.settings.origins:
            self._state.summary.notice(
                f"each of the {found.workers - 1} workers could have {each} connections only: the server has "
                f"{found.maximum}, {found.others} belong to other runs (setting max_connections, or fewer workers)"
            )

    def _run_file(self, run: Run, workers: int, places: Mapping[str, str]) -> RunFile:
        shared = run.shared
        return RunFile(
            run=run.run,
            pid=self._state.pid,
            # As the run has them: what fits the server is found out once, and no worker may take more.
            settings=run.settings,
            server=shared.server.info if shared is not None else None,
            owner=shared.owner if shared is not None else None,
            templates=run.templates,
            workers=workers,
            places=places,
            hosts=run.placement.joined(),
        )

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker has ended; one that crashed has left its database, and sessions in it.

        Raises:
            pytest.UsageError: it ended because we stopped it.
        """
        if not error:
            return
        if said := _our_words(error):
            # Before xdist shows a traceback for each worker, and starts four more in the place of each.
            raise pytest.UsageError(f"{said}\n(said by worker {node.gateway.id}; the run was stopped)")
        for run in self._state.runs:
            try:
                run.release_run([node.gateway.id])
            except HarnessError as problem:
                complain(
                    f"the database of the crashed worker {node.gateway.id} stays until the end: {problem}"
                )


def _our_words(error: object) -> str:
    """What our UsageError in a worker said; empty where it ended otherwise.

    execnet sends an exception as the text of its traceback (``RemoteError.formatted``), the message last.
    """
    text = str(getattr(error, "formatted", ""))
    _, found, said = text.rpartition(f"{pytest.UsageError.__name__}: pg-harness: ")
    return f"pg-harness: {said.strip()}" if found else ""
