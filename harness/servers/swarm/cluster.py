"""The Swarm, as one of its managers tells it: nodes, services, tasks; and what its refusals mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from harness.errors import BackendError, BackendUnavailable
from harness.servers.docker.daemon import Daemon, gone, translated

_ENDED = frozenset({"complete", "shutdown", "failed", "rejected", "remove", "orphaned"})
"""States from which no task comes back."""

_TRIES = 20
"""How often a service is changed once more where somebody else has changed it meanwhile."""

_CONFLICTS = re.compile("update out of sequence|name conflicts|already exists")

_MEANINGS = (
    (
        re.compile("not a swarm manager.*worker nodes", re.IGNORECASE | re.DOTALL),
        "{where} is a worker of its Swarm, and only managers are asked",
        ("name a manager: DOCKER_HOST or a Docker context", "or `docker node promote` it, there"),
        True,
    ),
    (
        re.compile("not a swarm manager", re.IGNORECASE),
        "{where} is not in a Swarm",
        (
            "`docker swarm init` makes it one, of a single node",
            "or name the daemon of a manager: DOCKER_HOST or a Docker context",
        ),
        True,
    ),
    (
        re.compile(
            "does not have a leader|too few managers|deadline *exceeded|no leader|lost leader", re.IGNORECASE
        ),
        "the Swarm of {where} has no leader: too few of its managers answer, so nothing can be started or ended there",
        (
            "see which managers are gone: `docker info`, or `docker node ls` once one of them is back",
            "where they do not come back: `docker swarm init --force-new-cluster` on a manager (Docker's documentation: recover from losing the quorum)",
        ),
        False,
    ),
    (
        re.compile("needs to be unlocked", re.IGNORECASE),
        "the Swarm of {where} is locked",
        ("`docker swarm unlock` on that machine",),
        False,
    ),
)
"""What a refusal says → what it means, what to do, and whether nothing of ours can be there."""


@dataclass(frozen=True)
class Node:
    """One machine of the Swarm.

    Attributes:
        state: ``"ready"``, or ``"down"``, ``"disconnected"``, ``"unknown"``.
        availability: ``"active"``, or ``"drain"``, ``"pause"``.
        message: why it is not ready, in the Swarm's words; may be empty.
        memory: bytes.
        machine: as ``uname -m`` says.
    """

    id: str
    hostname: str
    address: str
    state: str
    availability: str
    message: str
    memory: int
    machine: str
    manager: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Node:
        """As the manager's interface tells it."""
        status, described = told.get("Status") or {}, told.get("Description") or {}
        address = str(status.get("Addr") or "")
        if address in ("", "0.0.0.0", "127.0.0.1"):  # noqa: S104 - compared, not bound
            # A manager that listens everywhere knows its own address only as a manager.
            address = str((told.get("ManagerStatus") or {}).get("Addr") or address).rpartition(":")[0]
        return cls(
            id=str(told["ID"]),
            hostname=str(described.get("Hostname") or "?"),
            address=address.strip("[]"),
            state=str(status.get("State") or "unknown"),
            availability=str((told.get("Spec") or {}).get("Availability") or "active"),
            message=str(status.get("Message") or ""),
            memory=int((described.get("Resources") or {}).get("MemoryBytes") or 0),
            machine=str((described.get("Platform") or {}).get("Architecture") or ""),
            manager=told.get("ManagerStatus") is not None,
        )

    @property
    def usable(self) -> bool:
        """Whether tasks may be placed there."""
        return self.state == "ready" and self.availability == "active"

    @property
    def trouble(self) -> str:
        """Why it has no tasks, for people; empty where it may have some."""
        if self.state != "ready":
            return f"is {self.state}" + (f" ({self.message})" if self.message else "")
        return {"drain": "was drained", "pause": "is paused"}.get(self.availability, "")

    def __str__(self) -> str:
        return f"{self.hostname} ({self.address})"


@dataclass(frozen=True)
class Task:
    """One container that the Swarm has placed, or is about to.

    Attributes:
        slot: which of its service's replicas it is.
        node: where; empty as long as it is not placed.
        wanted: whether the Swarm wants it to run.
        state: ``"pending"``, ``"preparing"``, ``"running"``, ``"complete"`` …
        error: what went wrong, in the Swarm's words.
        port: where it is reached on its node; 0 where it is not.
    """

    id: str
    slot: int
    node: str
    wanted: bool
    state: str
    error: str
    port: int
    exit_code: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Task:
        """As the manager's interface tells it."""
        status = told.get("Status") or {}
        ports = (status.get("PortStatus") or {}).get("Ports") or ()
        return cls(
            id=str(told["ID"]),
            slot=int(told.get("Slot") or 0),
            node=str(told.get("NodeID") or ""),
            wanted=told.get("DesiredState") in ("running", "ready", "accepted"),
            state=str(status.get("State") or "new"),
            error=str(status.get("Err") or ""),
            port=next((int(port.get("PublishedPort") or 0) for port in ports), 0),
            exit_code=int((status.get("ContainerStatus") or {}).get("ExitCode") or 0),
        )

    @property
    def ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in _ENDED

    @property
    def alive(self) -> bool:
        """Whether it runs, or is on its way."""
        return self.wanted and not self.ended

    @property
    def unplaced(self) -> str:
        """Why no node takes it, in the Swarm's words; empty where one has."""
        return self.error if self.state == "pending" and "no suitable node" in self.error else ""


@dataclass(frozen=True)
class Service:
    """One service of ours.

    Attributes:
        version: of its specification: who changes it names the one that was seen.
    """

    id: str
    name: str
    version: int
    spec: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Service:
        """As the manager's interface tells it."""
        spec = dict(told["Spec"])
        return cls(str(told["ID"]), str(spec["Name"]), int(told["Version"]["Index"]), spec)

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the service itself."""
        return self.spec.get("Labels") or {}

    @property
    def replicas(self) -> int:
        """How many servers it is to have."""
        return int(self.spec["Mode"]["Replicated"].get("Replicas") or 0)

    @property
    def constraints(self) -> Sequence[str]:
        """Where its tasks may be placed."""
        return tuple((self.spec["TaskTemplate"].get("Placement") or {}).get("Constraints") or ())


@dataclass(frozen=True)
class Kept:
    """A secret or a config.

    Attributes:
        kind: ``"secret"`` or ``"config"``.
        created: when, in seconds since 1970 by the manager's clock.
    """

    kind: str
    id: str
    labels: Mapping[str, str]
    created: float

    @classmethod
    def of(cls, kind: str, told: Mapping[str, Any]) -> Kept:
        """As the manager's interface tells it."""
        created = datetime.fromisoformat(str(told["CreatedAt"])).timestamp()
        return cls(kind, str(told["ID"]), told["Spec"].get("Labels") or {}, created)


class Cluster:
    """What is asked of a manager. Every error of its client becomes one of ours.

    Args:
        daemon: of a manager.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._api = daemon.client.api

    @property
    def id(self) -> str:
        """The Swarm's own, which each of its managers tells."""
        told = self._daemon.about().get("Swarm") or {}
        return str((told.get("Cluster") or {}).get("ID") or "")

    def now(self) -> float:
        """Seconds since 1970, by the manager's clock."""
        return self._daemon.now()

    def nodes(self) -> dict[str, Node]:
        """Id → node.

        Raises:
            BackendUnavailable: the daemon is no manager, or the Swarm has no leader.
        """
        with asked(self._daemon, "list the nodes of its Swarm"):
            return {node.id: node for node in map(Node.of, self._api.nodes())}

    def services(self, labels: Sequence[str]) -> list[Service]:
        """Those that have all of these labels (``name`` or ``name=value``)."""
        with asked(self._daemon, "list the services of its Swarm"):
            return [Service.of(told) for told in self._api.services(filters={"label": list(labels)})]

    def service(self, handle: str) -> Service | None:
        """One, by its id; None where it is gone."""
        with asked(self._daemon, "look at a service"):
            try:
                return Service.of(self._api.inspect_service(handle))
            except Exception as error:
                if gone(error) == 404:
                    return None
                raise

    def tasks(self, service: str) -> list[Task]:
        """Those of a service that the Swarm still knows, the newest of each replica among them; none of one that is gone."""
        with asked(self._daemon, "list the tasks of a service"):
            try:
                return [Task.of(told) for told in self._api.tasks(filters={"service": service})]
            except Exception as error:
                if gone(error) == 404:
                    return []
                raise

    def create(self, spec: Mapping[str, Any]) -> Service:
        """A new service.

        Args:
            spec: as the interface takes it.

        Raises:
            BackendError: there is one of that name, or what it is made of is refused.
        """
        with asked(self._daemon, "create a service"):
            made = self._api.create_service(
                spec["TaskTemplate"],
                name=spec["Name"],
                labels=spec["Labels"],
                mode=spec["Mode"],
                endpoint_spec=spec["EndpointSpec"],
                update_config=spec["UpdateConfig"],
            )
            return Service.of(self._api.inspect_service(made["ID"]))

    def change(self, handle: str, how: Callable[[dict[str, Any]], bool]) -> Service | None:
        """Change a service by its version: where somebody else has changed it meanwhile, once more on what he has made.

        Args:
            how: changes the specification in its place; says whether it did.

        Returns:
            as it is then; None where it is gone.
        """
        for _ in range(_TRIES):
            service = self.service(handle)
            if service is None or not how(service.spec):
                return service
            spec = service.spec
            try:
                with asked(self._daemon, "change a service"):
                    self._api.update_service(
                        handle,
                        service.version,
                        task_template=spec["TaskTemplate"],
                        name=spec["Name"],
                        labels=spec.get("Labels"),
                        mode=spec["Mode"],
                        endpoint_spec=spec.get("EndpointSpec"),
                        update_config=spec.get("UpdateConfig"),
                    )
                return service
            except BackendError as error:
                if not _CONFLICTS.search(error.message):
                    raise
        raise BackendError(f"the service {handle} was changed by others {_TRIES} times in a row")

    def remove(self, handle: str) -> None:
        """Remove a service, whose tasks end with it; that it is gone is success."""
        with asked(self._daemon, "remove a service"):
            _unless_gone(lambda: self._api.remove_service(handle))

    # --- files ---------------------------------------------------------------------------------------

    def put_secret(self, name: str, content: bytes, labels: Mapping[str, str]) -> str:
        """Keep a secret; returns its id."""
        with asked(self._daemon, "keep a secret"):
            return str(self._api.create_secret(name, content, labels=dict(labels))["ID"])

    def put_config(self, name: str, content: bytes, labels: Mapping[str, str]) -> str:
        """Keep a file that is no secret; returns its id."""
        with asked(self._daemon, "keep a file"):
            return str(self._api.create_config(name, content, labels=dict(labels))["ID"])

    def files(self, labels: Sequence[str]) -> list[Kept]:
        """The secrets and configs that were kept with these labels."""
        with asked(self._daemon, "list its secrets and configs"):
            filters = {"label": list(labels)}
            found = [("secret", told) for told in self._api.secrets(filters=filters)]
            found += [("config", told) for told in self._api.configs(filters=filters)]
        return [Kept.of(kind, told) for kind, told in found]

    def remove_file(self, kind: str, handle: str) -> bool:
        """Remove a secret or a config; False where a service still uses it."""
        remove = self._api.remove_secret if kind == "secret" else self._api.remove_config
        try:
            with asked(self._daemon, f"remove a {kind}"):
                _unless_gone(lambda: remove(handle))
        except BackendError as error:
            if "in use" in error.message:
                return False
            raise
        return True

    # --- logs ----------------------------------------------------------------------------------------

    def log(self, task: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Lines of what a task wrote, wherever its node is.

        Args:
            tail: only so many of the last ones.
        """
        with asked(self._daemon, "read the log of a task"):
            # The client has the log of a whole service only, in which lines of all servers are mixed.
            answer = self._api._get(
                self._api._url("/tasks/{0}/logs", task),
                params={"stdout": True, "stderr": True, "follow": follow, "tail": tail or "all"},
                stream=True,
            )
            rest = ""
            for chunk in self._api._get_result_tty(True, answer, False):
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                yield from lines
            if rest:
                yield rest


def _unless_gone(remove: Callable[[], object]) -> None:
    try:
        remove()
    except Exception as error:
        if gone(error) != 404:
            raise


@contextmanager
def asked(daemon: Daemon, doing: str) -> Iterator[None]:
    """Turn every error of the client within the block into one of ours.

    Raises:
        BackendUnavailable: the daemon is no manager, or the Swarm has no leader or is locked.
        BackendError: it refused. ServerLost: the daemon does not answer (any more).
    """
    try:
        with translated(doing):
            yield
    except BackendError as error:
        if (meant := _meant(error, daemon.where)) is not None:
            raise meant from error
        raise


def _meant(error: BackendError, where: str) -> BackendUnavailable | None:
    for pattern, text, remedies, absent in _MEANINGS:
        if pattern.search(error.message):
            message = text.format(where=f"the Docker daemon at {where}" if "{where} is" in text else where)
            return BackendUnavailable(
                message, checked=[error.message], remedies=[*remedies, *_OTHERWISE], absent=absent
            )
    return None


_OTHERWISE = ('or do without: backend = "docker" starts containers on one daemon',)
