"""One backend over several Docker hosts: each server is on one of them, and says on which.

A host that cannot be asked, that is another one under a second name, or whose machine is of another architecture is named
once and left out; what it may hold is told by :meth:`Fleet.silent`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

from harness.config.project import Project
from harness.errors import BackendError, BackendUnavailable, ConfigError, ServerLost, ServerStartError
from harness.listing import counted
from harness.servers import memory
from harness.servers.balance import HostRoom, plan
from harness.servers.docker import hosts as hosts_
from harness.servers.docker import image, room, taking
from harness.servers.docker.backend import DockerBackend
from harness.servers.docker.daemon import translated
from harness.servers.docker.spec import architecture
from harness.servers.port import (
    Backend,
    Finding,
    HostState,
    ServerInfo,
    ServerRequest,
    Shelf,
    Snapshot,
    SnapshotStore,
    StandbyPlace,
    table,
)
from harness.servers.records import Hint, noted_hosts

logger = logging.getLogger("pg_harness.servers.docker")

ONLY = ""
"""The word of the daemon that is looked for where no hosts are named."""

_named: set[tuple[str, str, str]] = set()
"""Project, host and reason that were told of: a command asks more than once, by backends of their own."""

PATIENCE = 20.0
"""Seconds that a host may take to tell what it has, beyond those in which it has to answer at all."""

Answer = TypeVar("Answer")


class Fleet(Backend):
    """Servers in containers on several hosts.

    Args:
        project: whose servers they are.
        members: word → the host's own backend, those that servers are started on; in the order of the settings.
        former: likewise, those that the settings do not name any more, and that servers of the checkout were noted on.
        timeout: seconds that a daemon may take to answer.
        lost: word → why it leads to no daemon any more, of former hosts.
    """

    name = "docker"

    def __init__(
        self,
        project: Project,
        members: Mapping[str, DockerBackend],
        former: Mapping[str, DockerBackend],
        *,
        timeout: float,
        lost: Mapping[str, str] | None = None,
    ) -> None:
        self.project = project
        self._members = dict(members)
        self._former = dict(former)
        self._lost = dict(lost or {})
        self._timeout = timeout
        self._lock = threading.RLock()
        self._looked = False
        # Where no servers are started, and why; of those, where none is looked for either; what may hold some all the same.
        self._out: dict[str, str] = {}
        self._unasked: set[str] = set()
        self._silent: dict[str, str] = {}
        self.keys: dict[str, str] = {}

    @classmethod
    def of(cls, project: Project, *, timeout: float) -> Self:
        """The hosts of the settings, and those of servers that were noted; asks nobody.

        Raises:
            ConfigError: a word is wrong, or names a context that does not exist.
        """
        settings = project.settings
        wanted = hosts_.parse(settings.hosts, project.environ, settings.origin("hosts"))
        members = {host.word: DockerBackend.on(project, host, timeout=timeout) for host in wanted}
        if not members:
            members[ONLY] = DockerBackend.on(project, None, timeout=timeout)
        former: dict[str, DockerBackend] = {}
        lost: dict[str, str] = {}
        for word in dict.fromkeys(noted_hosts(project).values()):
            if word not in members:
                try:
                    former[word] = _noted(project, word, timeout)
                except BackendUnavailable as error:
                    # Nothing that the settings say is wrong: no command may end because of it.
                    lost[word] = reason_of(error)
        if ONLY not in members and _host_of_person(project) == ONLY:
            # Of the time before hosts were named.
            former[ONLY] = DockerBackend.on(project, None, timeout=timeout)
        return cls(project, members, former, timeout=timeout, lost=lost)

    # --- which hosts there are ---------------------------------------------------------------------

    def usable(self) -> Mapping[str, DockerBackend]:
        """Word → backend of those that servers can be started on.

        Raises:
            BackendUnavailable: there is none.
        """
        self._look()
        with self._lock:
            found = {word: member for word, member in self._members.items() if word not in self._out}
        if not found:
            raise self._none(self._out)
        return found

    def _reached(self) -> Mapping[str, DockerBackend]:
        """Those that may hold servers and answer, whether or not servers are started there: each daemon once."""
        self._look()
        with self._lock:
            every = {**self._members, **self._former}
            return {word: member for word, member in every.items() if word not in self._unasked}

    def _look(self) -> None:
        """Ask all of them who they are, side by side, once."""
        with self._lock:
            if self._looked:
                return
            every = {**self._members, **self._former}
            answers = side_by_side(every, room.identity, self._timeout + PATIENCE)
            for word, why in self._lost.items():
                self._fell_silent(word, why)
            known: dict[str, str] = {}
            first = ""
            for word, identity in answers.items():
                if isinstance(identity, BackendError):
                    # Where there is no sign of a daemon, nothing of ours can be there either.
                    if isinstance(identity, BackendUnavailable) and identity.absent:
                        self._unasked.add(word)
                        self._leave_out(word, reason_of(identity))
                    else:
                        self._fell_silent(word, reason_of(identity))
                    continue
                machine = architecture(every[word].daemon.about())
                if identity in known:
                    self._unasked.add(word)
                    self._leave_out(word, f"it is the same daemon as {known[identity]}")
                    continue
                known[identity] = word
                if first and machine != first and word in self._members:
                    # Only looked at, as a former one is: it may hold servers of a run for which it was the first.
                    self._leave_out(word, f"its machine is {machine}, and the first host's is {first}")
                else:
                    first = first or machine
            self._looked = True

    def _fell_silent(self, word: str, why: str) -> None:
        """It is not asked again by this command, and what it may hold is told by :meth:`silent`."""
        if word not in self._members:
            paths = [
                self.project.folder / f"{name}.json"
                for name, at in noted_hosts(self.project).items()
                if at == word
            ]
            if paths:
                noted = ", ".join(map(str, paths))
                why += f" (a server there is noted in {noted}: remove that if the host is gone for good)"
        with self._lock:
            self._silent.setdefault(word, why)
            self._unasked.add(word)
        self._leave_out(word, why)

    def _leave_out(self, word: str, why: str) -> None:
        with self._lock:
            self._out.setdefault(word, why)
        self._name(word, why)

    def _name(self, word: str, why: str) -> None:
        """Tell it once in this process."""
        with self._lock:
            # The same of two containers is told once.
            told = (self.project.id, word, re.sub(" in container [0-9a-f]+", "", why))
            if told in _named or word == ONLY:
                return
            _named.add(told)
        logger.warning("docker: the host %s is left out: %s", word, why)

    def failed(self, word: str, error: BackendError) -> None:
        """A host that has answered before did not do what it should."""
        if isinstance(error, ServerLost | BackendUnavailable) and not self._answers(word):
            self._fell_silent(word, reason_of(error))
        else:
            self._name(word, reason_of(error))

    def _answers(self, word: str) -> bool:
        member = {**self._members, **self._former}[word]
        (answer,) = side_by_side({word: member}, ping, self._timeout).values()
        return answer is True

    def _none(self, why: Mapping[str, str]) -> BackendUnavailable:
        origin = self.project.settings.origin("hosts")
        return BackendUnavailable(
            f"no Docker host can be used: {origin} names {counted(len(self._members), 'host')}",
            checked=[f"{word or 'the only daemon'}: {reason}" for word, reason in why.items()],
            remedies=[
                "see that `docker -H HOST info` (or `docker --context NAME info`) works for this user",
                "or leave hosts out (PGHARNESS_HOSTS, DOCKER_HOSTS): then this machine's own daemon is used",
            ],
        )

    def silent(self) -> Mapping[str, str]:
        """Word → why, of those that did not answer."""
        with self._lock:
            return {word or self.name: why for word, why in self._silent.items()}

    def hosts(self) -> Sequence[HostState]:
        """All hosts of the settings, with what they have."""
        self._look()
        with self._lock:
            asked = {word: member for word, member in self._members.items() if word not in self._out}
        answers = side_by_side(asked, room.state, self._timeout + PATIENCE)
        states = []
        for word in self._members:
            answer = answers.get(word)
            if isinstance(answer, HostState):
                states.append(replace(answer, word=word))
            else:
                why = reason_of(answer) if isinstance(answer, BackendError) else self._out.get(word, "")
                states.append(HostState(word, state=why or "it did not answer"))
        return states

    # --- a backend's own ---------------------------------------------------------------------------

    def available(self) -> str:
        """How many of the hosts can be used.

        Raises:
            BackendUnavailable: none of them.
        """
        found = self.usable()
        return f"{len(found)} of {counted(len(self._members), 'Docker host')} can be used: {', '.join(found)}"

    def examine(self) -> Iterator[Finding]:
        """Each host in a line, as in a table."""
        states = self.hosts()
        for state, line in zip(states, table(states), strict=True):
            remedies = (
                [] if state.ok else ["it is left out; see docs/many-machines.md, or take it out of hosts"]
            )
            yield Finding("ok" if state.ok else "note", line, remedies)
        for word, member in self.usable().items():
            ahead = member.daemon.ahead()
            if abs(ahead) > room.CLOCKS:
                told = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
                yield Finding(
                    "note", f"the clock of {word} is {told}", ["set both by NTP: logs would not fit together"]
                )
        yield Finding("ok", self.available())

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running server of that identity, on whichever host."""
        found = self._everywhere(lambda member: member.find(project, purpose))
        return next((self._at(word, info) for word, info in found.items() if info is not None), None)

    def list(self, project: str | None) -> list[ServerInfo]:
        """All servers of the checkout, on all hosts that answer."""
        found = self._everywhere(lambda member: member.list(project))
        return [self._at(word, info) for word, infos in found.items() for info in infos]

    def start(self, request: ServerRequest) -> ServerInfo:
        """Start it on the host that has the most room, or on the one that was planned; where that fails, on the next.

        Raises:
            BackendUnavailable: no host can be used. ServerStartError: it became ready on none of them.
        """
        if request.purpose == "up" and (word := self._kept_on(request)) is not None:
            # A person's data is there: another server elsewhere would hide it.
            return self._start_again(word, request)
        tried: dict[str, BackendError] = {}
        for word in self._order(request):
            try:
                return self._start_on(word, request)
            except BackendError as error:
                tried[word] = error
                if word == ONLY:
                    raise
                self.failed(word, error)
        raise self._failed_everywhere(tried)

    def _start_on(self, word: str, request: ServerRequest) -> ServerInfo:
        member = self._members[word]
        key = self.keys.get(request.snapshot) if request.snapshot is not None else None
        # What was pulled just now has no tag yet, and is tried as it is.
        if (
            request.snapshot is not None
            and key is not None
            and image.find(member.daemon, request.snapshot) is None
        ):
            taken = taking.take(key, word, self.usable(), self.project, ref=request.snapshot)
            request = replace(request, snapshot=taken.ref)
        if request.memory is not None:
            request = replace(request, memory=min(request.memory, member.free_memory() or request.memory))
        return self._at(word, member.start(request))

    def _start_again(self, word: str, request: ServerRequest) -> ServerInfo:
        if word in self._members and word not in self._out:
            return self._start_on(word, request)
        why = self._out.get(word) or f"{self.project.settings.origin('hosts')} does not name it"
        named = word or "this machine's own daemon"
        logger.info("docker: your server is on %s, and is started there, with its data (%s)", named, why)
        member = {**self._former, **self._members}[word]
        return self._at(word, member.start(replace(request, snapshot=None)))

    def _order(self, request: ServerRequest) -> Iterator[str]:
        """The hosts to try, best first; that they have failed meanwhile is seen."""
        found = dict(self.usable())
        if found.pop(request.host, None) is not None:
            yield request.host
        need = memory.PROCESSES + memory.bytes_of(request.settings.get("shared_buffers", "128MB"))
        rooms = [*self._rooms(found)] if len(found) > 1 else []
        while rooms:
            best = plan(rooms, [request.purpose], need=need).places.get(request.purpose)
            # Where none has the memory, the one that has the most is asked: it may do all the same.
            word = best or max(rooms, key=lambda each: each.memory).word
            rooms = [each for each in rooms if each.word != word]
            found.pop(word)
            yield word
        yield from found

    def _kept_on(self, request: ServerRequest) -> str | None:
        """The host that a person's server is on, running or stopped, whether or not servers are started there; None: on none.

        Raises:
            BackendUnavailable: it may be on one that does not tell.
        """
        self._refuse_to_lose_sight()
        asked = side_by_side(self._reached(), lambda member: member.holds(request.project, "up"), None)
        for word, answer in asked.items():
            if isinstance(answer, BackendError):
                self._fell_silent(word, reason_of(answer))
            elif answer:
                return word
        self._refuse_to_lose_sight()
        return None

    def _refuse_to_lose_sight(self) -> None:
        """A person's databases may be on a host that does not answer: no others are made elsewhere in their place.

        Raises:
            BackendUnavailable: they may.
        """
        word = _host_of_person(self.project)
        self._look()
        if word in self._silent:
            raise BackendUnavailable(
                f"your server was on the Docker host {word or self.name}, which does not answer: {self._silent[word]}",
                remedies=[
                    "see that it answers: your databases are there, and nothing was started elsewhere in their place",
                    f"or give them up: remove {self.project.folder / 'up.json'}",
                ],
            )

    def _failed_everywhere(self, tried: Mapping[str, BackendError]) -> BackendError:
        if not tried:
            return self._none(self._out)
        first = next(iter(tried.values()))
        if len(tried) == 1 and len(self._members) == 1:
            return first
        if isinstance(first, ServerStartError):
            first.add_note(f"The same was tried on {', '.join(tried)}.")
            return first
        return self._none({**self._out, **{word: reason_of(error) for word, error in tried.items()}})

    def stop(self, info: ServerInfo) -> None:
        """End it where it is; on a host that is gone, it ends by its switch when that is back."""
        self._member(info).stop(info)

    def halt(self, info: ServerInfo) -> None:
        """Stop it where it is, with its data."""
        self._member(info).halt(info)

    def watched(self, info: ServerInfo) -> bool:
        """As its host says."""
        return self._member(info).watched(info)

    def watch(self, info: ServerInfo) -> None:
        """Start its switch again, on its host."""
        self._member(info).watch(info)

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the container's output."""
        return self._member(info).logs(info, follow)

    def psql(
        self, info: ServerInfo, database: str, words: Sequence[str], *, user: str, terminal: bool
    ) -> Sequence[str] | None:
        """The command line that runs psql in the container, on its host."""
        return self._member(info).psql(info, database, words, user=user, terminal=terminal)

    def shelf(self, info: ServerInfo) -> Shelf:
        """A folder in the container."""
        return self._member(info).shelf(info)

    def standbys(self, info: ServerInfo) -> StandbyPlace:
        """In the container, on its host."""
        return self._member(info).standbys(info)

    def free_memory(self) -> int:
        """Of all hosts together."""
        return sum(each.memory for each in self._rooms(self.usable()))

    def snapshots(self) -> SnapshotStore:
        """Images on all hosts."""
        return taking.FleetSnapshots(self)

    # --- places ------------------------------------------------------------------------------------

    def places(
        self, workers: Sequence[str], *, need: int, placed: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """As :func:`harness.servers.balance.plan` places them, by what the daemons tell now."""
        if tuple(self._members) == (ONLY,):
            return {}
        rooms = self._rooms(self.usable())
        found = plan(rooms, workers, need=need, placed=placed)
        if found.unplaced:
            free = ", ".join(f"{each.word}: {each.memory // memory.MB} MB free" for each in rooms)
            raise BackendError(
                f"{counted(len(found.unplaced), 'server')} of {need // memory.MB} MB each have no room on any of the "
                f"Docker hosts ({free}): use at most {counted(len(found.places), 'worker')}, or name more hosts"
            )
        return found.places

    def spread(self, snapshot: Snapshot, words: Sequence[str]) -> None:
        """Bring it to these hosts, side by side."""
        usable = self.usable()
        wanted = {word: usable[word] for word in words if word in usable}
        taken = {
            word: (lambda word=word: taking.take(snapshot.key, word, usable, self.project, ref=snapshot.ref))
            for word in wanted
        }
        for word, answer in side_by_side(taken, lambda take: take(), None).items():
            if isinstance(answer, BackendError):
                self.failed(word, answer)
                self._leave_out(word, reason_of(answer))

    def _rooms(self, members: Mapping[str, DockerBackend]) -> Sequence[HostRoom]:
        rooms = []
        for word, answer in side_by_side(members, room.of, self._timeout + PATIENCE).items():
            if isinstance(answer, BackendError):
                self.failed(word, answer)
            else:
                rooms.append(replace(answer, word=word))
        return rooms

    # --- one member --------------------------------------------------------------------------------

    def _member(self, info: ServerInfo) -> DockerBackend:
        """The backend of a server's host, whether or not the settings still name it."""
        with self._lock:
            found = self._members.get(info.host) or self._former.get(info.host)
            if found is None:
                found = self._former[info.host] = _noted(self.project, info.host, self._timeout)
            return found

    def _everywhere(self, call: Callable[[DockerBackend], Answer]) -> dict[str, Answer]:
        """What each host answers; one that does not is left out.

        Raises:
            BackendUnavailable: none of them answers.
        """
        answers = side_by_side(self._reached(), call, None)
        found: dict[str, Answer] = {}
        failed: dict[str, str] = {}
        for word, answer in answers.items():
            if isinstance(answer, BackendError):
                failed[word] = reason_of(answer)
                self.failed(word, answer)
                with self._lock:
                    # It may answer now: what it holds was not told all the same, and is not nothing.
                    self._silent.setdefault(word, failed[word])
            else:
                found[word] = answer
        if not found:
            raise self._none({**self._out, **failed})
        return found

    @staticmethod
    def _at(word: str, info: ServerInfo) -> ServerInfo:
        return replace(info, host=word, description=f"{info.description} on {word}") if word else info


def _host_of_person(project: Project) -> str | None:
    """The word of the host that a person's server was noted on; None: of none."""
    info, _ = Hint.of(project, "up").read()
    return info.host if info is not None and info.backend == DockerBackend.name else None


def _noted(project: Project, word: str, timeout: float) -> DockerBackend:
    """The backend of a host that only a noted server names.

    Raises:
        BackendUnavailable: its word leads to no daemon any more.
    """
    try:
        host = hosts_.parse([word], project.environ, "a noted server")[0] if word else None
    except ConfigError as error:
        raise BackendUnavailable(error.message.replace("hosts holds", "its host was", 1)) from None
    return DockerBackend.on(project, host, timeout=timeout)


def ping(member: DockerBackend) -> bool:
    """Whether its daemon answers now."""
    with translated("answer"):
        return bool(member.daemon.client.ping())


def reason_of(error: BackendError) -> str:
    """In one line."""
    return error.message.splitlines()[0]


Asked = TypeVar("Asked")


def side_by_side(
    asked: Mapping[str, Asked], call: Callable[[Asked], Answer], patience: float | None
) -> dict[str, Answer | BackendError]:
    """What each answers, in their order; an error of ours in its place. Any other error is raised.

    Args:
        patience: seconds after which one that has not answered is not waited for any longer; None: as long as it takes.
    """
    answers: dict[str, Any] = {}

    def ask(word: str, one: Asked) -> None:
        try:
            answers[word] = call(one)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            answers[word] = error

    threads = [
        threading.Thread(target=ask, args=pair, name=f"pg-harness {pair[0]}", daemon=True)
        for pair in asked.items()
    ]
    for thread in threads:
        thread.start()
    deadline = None if patience is None else time.monotonic() + patience
    for thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    found: dict[str, Answer | BackendError] = {}
    for word in asked:
        answer = answers.get(word, ServerLost(f"it did not answer within {patience:g} s" if patience else ""))
        if isinstance(answer, BaseException) and not isinstance(answer, BackendError):
            raise answer
        found[word] = answer
    return found
