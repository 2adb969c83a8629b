"""A repository of a registry, where baked images lie for other machines: asked, pulled from and pushed to by the daemon.

Whoever only starts a server is never stopped by it: what is wrong with a registry, or with what it gave, is told, and the server
is baked or migrated here. That it did not answer is noted in the cache, so that no process of a run waits for it again.

The daemon asks it, with what `docker login` has noted for this user (docs/decisions/0090).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from harness.config.state_file import StateFile
from harness.errors import BackendError, BackendUnavailable, ServerLost
from harness.servers.docker import image as image_
from harness.servers.docker.daemon import Daemon, text_of, translated
from harness.servers.port import Shared

logger = logging.getLogger("pg_harness.servers.docker")

LOOK = 10.0
"""Seconds that a registry may take to say whether it has a tag."""

STALLED = 30.0
"""Seconds without a sign of progress after which a pull or a push is given up."""

AT_LEAST, SETTLED = 1_000_000, 60.0
"""Bytes a second that a pull must bring on average once it has lasted so many seconds: below, migrating is quicker."""

QUIET, REFUSED = 300.0, 60.0
"""Seconds for which a registry that did not answer, or that refused us, is not asked again by those who can do without."""

DISTRUST = 24 * 3600.0
"""Seconds for which a digest that did not hold what it says is not pulled again."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFUSALS = re.compile(
    r"unauthorized|authentication required|no basic auth|denied|forbidden|\b40[13]\b", re.I
)
_BROKEN = re.compile(
    r"match|verification|invalid|corrupt|unmarshal|media type|(blob|manifest) unknown|unknown blob", re.I
)


class Unreached(BackendUnavailable):
    """A registry does not answer, or refuses.

    Attributes:
        refused: it answered, and wants other credentials.
    """

    refused: bool = False


@dataclass(frozen=True)
class Repository:
    """One repository, as one daemon reaches it.

    Attributes:
        name: for instance ``"registry.example/pg-harness"``.
        cache: where it is noted that it did not answer.
    """

    name: str
    daemon: Daemon = field(repr=False)
    cache: Path = field(repr=False)

    @property
    def host(self) -> str:
        """What `docker login` takes."""
        return self.name.partition("/")[0]

    # --- asking ------------------------------------------------------------------------------------

    def look(self, key: str) -> Shared | None:
        """What lies under a key's tag; None where there is no such tag. Nothing is pulled.

        Raises:
            Unreached: the registry cannot be asked.
        """
        reference = f"{self.name}:{key}"
        with self._reaching(f"look for {reference}"):
            response = self._call("GET", f"/distribution/{reference}/json", timeout=(LOOK, LOOK))
            try:
                answer = _object(response.content)
            finally:
                response.close()
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            self._raise(_words(answer.get("message")) or f"status {response.status_code}")
        digest = str((answer.get("Descriptor") or {}).get("digest") or "")
        if not _DIGEST.fullmatch(digest):
            self._raise(f"it names no digest for {reference}")
        platforms = [
            f"{each.get('os')}/{each.get('architecture')}"
            for each in answer.get("Platforms") or ()
            if isinstance(each, dict)
        ]
        return Shared(self.name, key, digest, tuple(platforms))

    def look_patiently(self, key: str) -> Shared | None:
        """As :meth:`look`, for those who can do without: what is wrong is told once, and then believed for a while."""
        silent = self._noted().get("silent")
        if isinstance(silent, dict) and _still(silent):
            logger.debug("docker: %s is not asked again yet: %s", self.name, silent.get("why"))
            return None
        try:
            found = self.look(key)
        except Unreached as error:
            self._pass_over(error)
            return None
        self.answered()
        if found is None:
            logger.debug("docker: %s has no %s", self.name, key)
        elif why := self.distrusted(found.digest):
            logger.info("docker: %s is passed over: %s", found.reference, why)
            return None
        return found

    def _pass_over(self, error: Unreached) -> None:
        seconds = REFUSED if error.refused else QUIET
        logger.info(
            "docker: %s. Going on without it; it is not asked again for %g s",
            error.message.splitlines()[0],
            seconds,
        )
        for remedy in error.remedies if error.refused else ():
            logger.info("docker: → %s", remedy)
        self._note(
            {
                **self._noted(),
                "silent": {"why": error.message.splitlines()[0], "until": time.time() + seconds},
            }
        )

    def answered(self) -> None:
        """Forget that it did not answer."""
        noted = self._noted()
        if noted.pop("silent", None) is not None:
            self._note(noted)

    # --- pulling -----------------------------------------------------------------------------------

    def pull(self, found: Shared) -> Any | None:
        """The image, by its digest, which the daemon compares with what comes; None where it does not come, which is told."""
        began = time.monotonic()
        logger.info("docker: pulling %s", found.reference)
        try:
            with self._reaching(f"pull {found.reference}"):
                self._pull(found.digest)
                image = self.daemon.client.images.get(found.reference)
        except Unreached as error:
            why = error.message.splitlines()[0]
            if _BROKEN.search(why):
                # It answers others: what it has under this digest is no image.
                self.distrust(found.digest, why)
                logger.warning("docker: %s is passed over: %s", found.reference, why)
            else:
                self._pass_over(error)
            return None
        logger.info("docker: pulled it in %.1f s", time.monotonic() - began)
        return image

    def _pull(self, digest: str) -> None:
        seen = _Progress()
        words = {"fromImage": self.name, "tag": digest}
        for event in self._events("/images/create", words):
            seen.take(event)
            if seen.crawls:
                self._raise(f"it is slow: {seen.current / 1e6:.0f} MB in {seen.seconds:.0f} s")
            if line := seen.line():
                logger.info("docker: pulling %s: %s", self.name, line)

    # --- pushing -----------------------------------------------------------------------------------

    def push(self, image: str, key: str) -> Shared:
        """Put an image under a key's tag, with its base image's layers where they are not there yet.

        Args:
            image: id.

        Raises:
            BackendUnavailable: the registry cannot be reached, refuses, or has no room; with what to do.
        """
        reference = f"{self.name}:{key}"
        api = self.daemon.client.api
        with translated("tag an image"):
            api.tag(image, self.name, key, force=True)
        try:
            with self._reaching(f"push {reference}"):
                digest = self._push(key)
        except Unreached as error:
            raise BackendUnavailable(
                f"{reference} was not pushed: {error.message.splitlines()[0]}",
                checked=error.checked,
                remedies=error.remedies,
            ) from error
        finally:
            # It has the name that we look for; this one would be one more to remove. The digest stays with it.
            with suppress(Exception):
                api.remove_image(reference, noprune=True)
        return Shared(self.name, key, digest, ())

    def _push(self, key: str) -> str:
        digest = ""
        seen = _Progress()
        for event in self._events(f"/images/{self.name}/push", {"tag": key}):
            seen.take(event)
            if line := seen.line():
                logger.info("docker: pushing to %s: %s", self.name, line)
            digest = str((event.get("aux") or {}).get("Digest") or digest)
        if not _DIGEST.fullmatch(digest):
            self._raise("the daemon does not say that it was pushed")
        return digest

    # --- what is not believed ----------------------------------------------------------------------

    def distrusted(self, digest: str) -> str:
        """Why a digest is not pulled; empty where nothing is known against it."""
        noted = (self._noted().get("lies") or {}).get(digest)
        return str(noted.get("why")) if isinstance(noted, dict) and _still(noted) else ""

    def distrust(self, digest: str, why: str) -> None:
        """Note that what lies under a digest is not what it says."""
        noted = self._noted()
        lies = {
            each: said
            for each, said in (noted.get("lies") or {}).items()
            if isinstance(said, dict) and _still(said)
        }
        # As many as matter: a registry that lies may do so with a new digest each time.
        lies = dict(list(lies.items())[-49:])
        lies[digest] = {"why": why, "until": time.time() + DISTRUST}
        self._note({**noted, "lies": lies})

    @property
    def _file(self) -> StateFile:
        # Each daemon has its own way to the registry.
        mark = hashlib.sha256(f"{self.daemon.where} {self.name}".encode()).hexdigest()[:16]
        return StateFile(self.cache / "registries" / f"{mark}.json", 1, folder_mode=0o755)

    def _noted(self) -> dict[str, Any]:
        try:
            noted = self._file.read()
        except (FileNotFoundError, ValueError):
            return {}
        return {**noted, "lies": noted["lies"] if isinstance(noted.get("lies"), dict) else {}}

    def _note(self, content: Mapping[str, Any]) -> None:
        # Where it cannot be noted, the next process asks again.
        self._file.note(content)

    # --- the daemon --------------------------------------------------------------------------------

    def _call(self, method: str, path: str, **options: Any) -> Any:
        api = self.daemon.client.api
        # Not by the client's own calls: their limits are another one's, or none (`pull`).
        url = f"{api.base_url}/v{api.api_version}{path}"
        return api.request(method, url, headers=self._credentials(), **options)

    def _events(self, path: str, words: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        """What the daemon tells while it pulls or pushes; an error of it is raised."""
        response = self._call("POST", path, params=words, stream=True, timeout=(LOOK, STALLED))
        try:
            if response.status_code >= 400:
                self._raise(
                    _words(_object(response.content).get("message")) or f"status {response.status_code}"
                )
            for line in response.iter_lines(chunk_size=None):
                event = _object(line)
                if "error" in event:
                    self._raise(_words(event["error"]))
                yield event
        finally:
            # The daemon ends what nobody listens to any more.
            response.close()

    def _credentials(self) -> Mapping[str, str]:
        """The header with what `docker login` has noted for this registry; a helper that hangs is given up."""
        from docker import auth

        found: list[bytes | None] = []
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                registry, _ = auth.resolve_repository_name(self.name)
                found.append(auth.get_config_header(self.daemon.client.api, registry))
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
                failures.append(error)

        thread = threading.Thread(target=ask, name="pg-harness-credentials", daemon=True)
        thread.start()
        thread.join(LOOK)
        if failures:
            self._raise(f"its credentials cannot be had: {_words(failures[0])}")
        if not found:
            self._raise(f"the helper that keeps its credentials did not answer within {LOOK:g} s")
        # Without any the daemon takes no push: an empty object, as Docker's own client sends.
        return {"X-Registry-Auth": (found[0] or b"e30=").decode()}

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
        """Turn what the daemon says, or that it says nothing, into what is wrong with the registry."""
        try:
            with translated(doing):
                yield
        except Unreached:
            raise
        except ServerLost as error:
            # The daemon waits for the registry: it answers others meanwhile.
            if "timed out" not in str(error).lower():
                raise
            self._raise("nothing came from it in time")
        except BackendError as error:
            self._raise(_words(error.__cause__ or error))

    def _raise(self, reason: str) -> NoReturn:
        refused = bool(_REFUSALS.search(reason))
        error = Unreached(
            f"the registry of {self.name} {'refuses' if refused else 'cannot be used'}: {reason}",
            remedies=list(self._remedies(reason, refused=refused)),
        )
        error.refused = refused
        raise error

    def _remedies(self, reason: str, *, refused: bool) -> Iterator[str]:
        low = reason.lower()
        if "quota" in low or "no space" in low or "too large" in low or "insufficient" in low:
            yield "make room there: remove old tags, by the registry's own rules of retention (docs/ci.md)"
        elif refused:
            yield f"docker login {self.host}, as the user who runs this (DOCKER_CONFIG names the folder), with the right to push where you push"
        elif "https client" in low:
            yield f'it has no TLS: give it a certificate, or name it in the daemon\'s "insecure-registries": ["{self.host}"]'
        elif "x509" in low or "certificate" in low:
            yield f"put the certificate of its authority into /etc/docker/certs.d/{self.host}/ca.crt on the daemon's machine"
        elif "unsupported" in low or "405" in low or "read-only" in low or "immutable" in low:
            yield "it takes no pushes, or no second one under this tag: name a repository that does (baked_repository)"
        else:
            yield f"see that the daemon reaches it: docker pull {self.name}:latest (that there is no such tag is an answer)"
        yield "or leave baked_repository out: every machine bakes for itself then"


class _Progress:
    """How far a pull or a push is, by the daemon's events."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self._layers: dict[str, tuple[int, int]] = {}
        self._loading: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> None:
        """One event."""
        name, status = str(event.get("id")), event.get("status")
        detail = event.get("progressDetail")
        current, total = (
            (detail.get("current"), detail.get("total")) if isinstance(detail, dict) else (None, None)
        )
        if status in ("Downloading", "Pushing") and isinstance(current, int) and isinstance(total, int):
            self._layers[name] = (current, total)
            self._loading.add(name)
        elif status in ("Download complete", "Pull complete", "Pushed"):
            _, whole = self._layers.get(name, (0, 0))
            self._layers[name] = (whole, whole)
            self._loading.discard(name)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def current(self) -> int:
        """Bytes that have come."""
        return sum(current for current, _ in self._layers.values())

    @property
    def crawls(self) -> bool:
        """Whether it is so slow that waiting for it costs more than it spares."""
        return bool(self._loading) and self.seconds > SETTLED and self.current < self.seconds * AT_LEAST

    def line(self) -> str:
        """For people, every two seconds; else empty."""
        if not self._layers or time.monotonic() - self._told < 2:
            return ""
        self._told = time.monotonic()
        return f"{self.current / 1e6:.0f} of {sum(total for _, total in self._layers.values()) / 1e6:.0f} MB"


def _still(noted: Mapping[str, Any]) -> bool:
    """Whether a note holds: a clock that was turned back does not make it hold for ever."""
    until = noted.get("until")
    return isinstance(until, int | float) and time.time() < until <= time.time() + DISTRUST


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _words(said: object) -> str:
    """What somebody else's error says, in one line without what a terminal obeys."""
    text = text_of(said) if isinstance(said, BaseException) else " ".join(str(said or "").split())[:400]
    return image_.printable(text)
