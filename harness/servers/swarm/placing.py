"""One start: a service is scaled up, and the first of its servers that nobody has yet is claimed; or why there is none."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import BackendUnavailable, HarnessError, ServerStartError
from harness.postgres.session import greet
from harness.servers import defaults
from harness.servers.port import ServerInfo, ServerRequest
from harness.servers.swarm import spec
from harness.servers.swarm.claim import claim, holder
from harness.servers.swarm.cluster import Node, Service, Task
from harness.servers.swarm.note import Note

if TYPE_CHECKING:
    from harness.servers.swarm.backend import SwarmBackend

logger = logging.getLogger("pg_harness.servers.swarm")

PENDING = 3.0
"""Seconds after which a server that no node takes is given up: the Swarm says so at once, and would wait for ever."""

AGAIN = 5
"""How often one more server is asked for where one was lost to another worker, or with its node."""

_NO_IMAGE = re.compile("No such image|pull access denied|not found: manifest|manifest unknown", re.IGNORECASE)


class Placing:
    """The start of one server.

    Args:
        request: what server is wanted.
    """

    def __init__(self, backend: SwarmBackend, request: ServerRequest) -> None:
        self._backend = backend
        self._cluster = backend.cluster
        self._request = request
        self._grouped = spec.group_of(request.purpose) != request.purpose
        self._service: Service | None = None
        self._known: set[str] = set()
        """Tasks that had ended before: nothing of them is news."""
        self._left_out: dict[str, str] = {}
        """Node → why no server is placed there."""
        self._made = False
        self._asked = 0
        self._last = "nobody answered"

    def begin(self, service: Service, *, made: bool) -> None:
        """Take a service, and have it one server more where it is a run's that has some. Under the backend's lock.

        Args:
            made: whether it was made for this start: it has its server, and nobody else's.
        """
        self._service, self._made = service, made
        self._known = {task.id for task in self._cluster.tasks(service.id) if task.ended}
        if self._grouped:
            if (note := self._backend.note_of(service)) is not None:
                self._backend.note(service, note.waits(self._request.purpose))
            if not made:
                self._backend.fit(service.id)

    def undo(self) -> None:
        """Give back what was asked for; an error is not worth more than the one that led here."""
        if self._service is None:
            return
        try:
            with self._backend.alone():
                note = self._backend.note_of(self._service)
                if self._grouped and note is not None:
                    self._backend.note(self._service, note.waits_no_more(self._request.purpose))
                    self._backend.tidy(self._service.id)
                elif self._made:
                    self._backend.remove(self._service)
        except HarnessError as error:
            logger.warning("swarm: the service %s stays: %s", self._service.name, error.message)

    def wait(self) -> ServerInfo:
        """The server, once it answers as itself and is ours.

        Raises:
            BackendUnavailable: no node may take it. ServerStartError: it ended, or was not ready in time.
        """
        assert self._service is not None
        began = time.monotonic()
        pause, unplaced_since = 0.02, 0.0
        while True:
            nodes, tasks, note = (
                self._cluster.nodes(),
                self._cluster.tasks(self._service.id),
                self._backend.note_of(self._service),
            )
            if note is None:
                raise ServerStartError(
                    f"the service {self._service.name} was removed while a server of it was started"
                )
            mine = [task for task in tasks if task.alive and not (self._grouped and task.id in note.claims)]
            for task in mine:
                if (info := self._try(task, nodes, note)) is not None:
                    return info
            self._judge_ended([task for task in tasks if task.id not in note.claims], nodes)
            refused = [task.unplaced for task in mine if task.unplaced]
            if mine and len(refused) == len(mine):
                unplaced_since = unplaced_since or time.monotonic()
                if time.monotonic() - unplaced_since > PENDING:
                    raise self._no_node(refused[0], nodes)
            else:
                unplaced_since = 0.0
            if not mine:
                self._ask_again()
            if time.monotonic() - began > self._request.start_timeout:
                raise self._too_late(mine, nodes)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def _try(self, task: Task, nodes: Mapping[str, Node], note: Note) -> ServerInfo | None:
        """The server of a task, where it answers as itself and nobody else has it."""
        assert self._service is not None
        if task.state != "running" or not task.port:
            return None
        node = nodes.get(task.node)
        if node is None or not node.address:
            return None
        if note.names and node.address not in note.names:
            self._leave_out(node, "it joined later, and the certificate of the service does not name it", [])
            return None
        info = self._backend.info(self._service, task, nodes, note)
        try:
            session = greet(info.dsn, info.server_id, timeout=2)
        except HarnessError as error:
            self._last = error.message
            return None
        if session is None:
            self._last = "another server answers there"
            return None
        with session:
            if not self._grouped:
                return info
            ours = claim(session, self._request.purpose)
            owner = self._request.purpose if ours else holder(session)
        # Another's too: killed before it noted that, it would leave a server that looks free, and none is asked for in its place.
        self._note_claim(task, owner)
        return replace(info, purpose=owner) if ours else None

    def _note_claim(self, task: Task, owner: str) -> None:
        """So that others know it without a log-in."""
        assert self._service is not None
        with self._backend.alone():
            note = self._backend.note_of(self._service)
            if note is not None and task.id not in note.claims:
                self._backend.note(self._service, note.claimed(task.id, owner))

    # --- what may go wrong ---------------------------------------------------------------------------

    def _judge_ended(self, tasks: list[Task], nodes: Mapping[str, Node]) -> None:
        """Leave out nodes that lack the image.

        Raises:
            ServerStartError: a server has ended instead of becoming ready.
        """
        for task in tasks:
            if not task.ended or task.id in self._known:
                continue
            self._known.add(task.id)
            node = nodes.get(task.node)
            where = str(node) if node is not None else task.node or "no node"
            if _NO_IMAGE.search(task.error) and node is not None:
                self._leave_out(node, "it does not have the image, and cannot pull it", tasks)
            elif task.state in ("failed", "rejected") and task.exit_code != 0:
                log = self._log(task)
                raise ServerStartError(
                    f"the server on the node {where} of the Swarm ended with code {task.exit_code}: {task.error}",
                    log_tail=log,
                )
            elif task.state == "rejected":
                raise ServerStartError(f"the node {where} of the Swarm refused the server: {task.error}")

    def _log(self, task: Task) -> str:
        try:
            return defaults.tail("\n".join(self._cluster.log(task.id, tail=25)))
        except HarnessError:
            return ""

    def _leave_out(self, node: Node, why: str, tasks: list[Task]) -> None:
        """Have no server of this service placed on a node any more; those that the node has refused are placed elsewhere."""
        assert self._service is not None
        if node.id in self._left_out:
            return
        self._left_out[node.id] = why
        logger.info("swarm: the node %s is left out: %s", node, why)
        if any(task.alive and task.state == "running" and task.node == node.id for task in tasks):
            # Its constraint would end those that run there.
            return
        constraint = f"node.id != {node.id}"

        def without(spec_: dict[str, Any]) -> bool:
            placement = spec_["TaskTemplate"].setdefault("Placement", {})
            constraints = placement.get("Constraints") or []
            if constraint in constraints:
                return False
            placement["Constraints"] = [*constraints, constraint]
            return True

        self._cluster.change(self._service.id, without)

    def _ask_again(self) -> None:
        """One more server, where those that were asked for are others' or gone.

        Raises:
            ServerStartError: that has not helped.
        """
        assert self._service is not None
        self._asked += 1
        if self._asked > AGAIN:
            raise ServerStartError(
                f"the service {self._service.name} of the Swarm has lost its server {AGAIN} times: {self._last}"
            )
        # What has just been moved or scaled shows a moment later.
        time.sleep(0.3)
        with self._backend.alone():
            if self._grouped:
                self._backend.fit(self._service.id)

    def _no_node(self, why: str, nodes: Mapping[str, Node]) -> BackendUnavailable:
        settings = self._backend.settings
        checked = [f"the Swarm says: {why}"]
        if settings.swarm_constraints:
            checked.append(
                f"swarm_constraints = {list(settings.swarm_constraints)} ({settings.origin('swarm_constraints')})"
            )
        for node in nodes.values():
            said = self._left_out.get(node.id) or node.trouble or f"is ready, {node.machine}"
            checked.append(f"the node {node}: {said}")
        remedies = []
        if self._left_out:
            remedies += [
                "have all nodes pull what is baked from a registry: baked_repository",
                "or bring the image there: docker save … | docker -H NODE load",
            ]
        if settings.swarm_constraints:
            remedies.append("see that a node meets them: docker node update --label-add db=yes NODE")
        if settings.memory_limit and "insufficient" in why:
            remedies.append("a smaller memory_limit: so much memory is asked for on one node")
        remedies.append("or see what the nodes lack: docker node ls")
        return BackendUnavailable(
            "no node of the Swarm may take the server", checked=checked, remedies=remedies
        )

    def _too_late(self, mine: list[Task], nodes: Mapping[str, Node]) -> ServerStartError:
        where = ", ".join(
            f"{task.state} on {nodes[task.node]}" if task.node in nodes else task.state for task in mine
        )
        log = next((self._log(task) for task in mine if task.state == "running"), "")
        return ServerStartError(
            f"no server of the service in the Swarm became ready within {self._request.start_timeout:.0f} s (start_timeout): "
            f"{where or 'none was placed'}; last answer: {self._last}",
            log_tail=log,
        )
