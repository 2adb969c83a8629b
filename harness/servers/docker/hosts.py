"""Docker hosts as the settings name them: words become addresses, with the certificates that belong to each.

::

    context:ci-1           a context of `docker context ls`
    ssh://build@db2        a daemon behind ssh, by the system's own client
    tcp://10.0.0.5:2376    a daemon that listens, with the certificates of DOCKER_CERT_PATH
    unix:///run/x.sock     a socket of this machine
    local                  this machine's own daemon, whatever DOCKER_HOST says
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError, closest

LOCAL = "local"
CONTEXT = "context:"
_SCHEMES = ("ssh://", "tcp://", "unix://")


@dataclass(frozen=True)
class Host:
    """One daemon.

    Attributes:
        word: what the settings call it.
        address: ``ssh://…``, ``tcp://…``, ``unix://…``; empty: this machine's own, wherever its socket is.
        certificates: the folder with ``ca.pem``, and ``cert.pem`` and ``key.pem`` where ours are looked at; empty: it is spoken to without.
        verify: whether its certificate is compared with that authority.
    """

    word: str
    address: str
    certificates: str = ""
    verify: bool = True

    @property
    def command(self) -> Sequence[str]:
        """The docker command that speaks to it, as far as its subcommand; certificates come by the environment, as here. Empty for
        this machine's own: by the socket that was found."""
        if self.address and self.word.startswith(CONTEXT):
            return ["docker", "--context", self.word.removeprefix(CONTEXT)]
        return ["docker", "-H", self.address] if self.address else []

    @property
    def remote(self) -> bool:
        """Whether it is reached over a network: then making a connection may take any time."""
        return self.address.startswith(("ssh://", "tcp://"))


def parse(words: Sequence[str], environ: Mapping[str, str], origin: str) -> list[Host]:
    """The hosts of these words, in their order; of a word that is there twice, the first. Reads files, asks nobody.

    Args:
        origin: where the words were read, for messages.

    Raises:
        ConfigError: a word is of no known form, or names a context that does not exist.
    """
    return [_host(word, environ, origin) for word in dict.fromkeys(words)]


def _host(word: str, environ: Mapping[str, str], origin: str) -> Host:
    if word in (LOCAL, CONTEXT + "default"):
        return Host(word, "")
    if word.startswith(CONTEXT):
        return _of_context(word, environ, origin)
    if not word.startswith(_SCHEMES) or not word.partition("://")[2]:
        raise _wrong(word, origin, "it must be local, context:NAME, ssh://…, tcp://… or unix://…")
    if not word.startswith("tcp://"):
        return Host(word, word)
    encrypted = environ.get("DOCKER_TLS_VERIFY") or environ.get("DOCKER_CERT_PATH")
    folder = (environ.get("DOCKER_CERT_PATH") or str(_configuration(environ))) if encrypted else ""
    return Host(word, word, folder, not encrypted or bool(environ.get("DOCKER_TLS_VERIFY")))


def _of_context(word: str, environ: Mapping[str, str], origin: str) -> Host:
    """As the docker command reads it (docker/cli, cli/context/store). Not by docker-py: it finds no context as long as
    there is no ``config.json`` beside them, and looks in the working directory instead."""
    name = word.removeprefix(CONTEXT)
    contexts = _configuration(environ) / "contexts"
    identity = hashlib.sha256(name.encode()).hexdigest()
    try:
        endpoint = json.loads((contexts / "meta" / identity / "meta.json").read_text())["Endpoints"]["docker"]
        address = str(endpoint["Host"])
    except FileNotFoundError:
        known = sorted(_names(contexts))
        near = closest(name, known)
        hint = f"; did you mean {CONTEXT}{near}?" if near else ""
        raise _wrong(
            word,
            origin,
            f"there is no Docker context {name!r} (there are: {', '.join(['default', *known])}){hint}",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(
            word, origin, f"the Docker context {name!r} cannot be read ({type(error).__name__}: {error})"
        ) from None
    if not address.startswith(_SCHEMES):
        raise _wrong(word, origin, f"the Docker context {name!r} is at {address}, which cannot be used here")
    folder = contexts / "tls" / identity / "docker"
    certificates = str(folder) if address.startswith("tcp://") and folder.is_dir() else ""
    return Host(word, address, certificates, not endpoint.get("SkipTLSVerify"))


def _names(contexts: Path) -> list[str]:
    found = []
    for path in contexts.glob("meta/*/meta.json"):
        try:
            found.append(str(json.loads(path.read_text())["Name"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _configuration(environ: Mapping[str, str]) -> Path:
    """Where Docker's client has its files."""
    return Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home(), ".docker"))


def _wrong(word: str, origin: str, why: str) -> ConfigError:
    return ConfigError(f"{origin}: hosts holds {word!r}: {why}", key="hosts", origin=origin, value=word)
