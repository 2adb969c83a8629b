"""A certificate of its own for each server that is reached over a network: its clients trust this one and no other.

The leaf signs itself and is the root that its clients pin: no authority is kept anywhere, whose key could be stolen.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.state_file import replace_file
from harness.dsn import Secret
from harness.errors import BackendUnavailable

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

EARLIER = timedelta(days=2)
"""A certificate is valid from so long before it is made: the clocks of two machines differ."""
LIFETIME = timedelta(days=820)
"""From then to its end: Apple's library takes no certificate of more than 825 days."""


@dataclass(frozen=True)
class Certificate:
    """What a server shows, and what it proves by it that it is the one.

    Attributes:
        certificate: PEM; public.
        key: PEM; never in ``repr``.
    """

    certificate: str
    key: Secret = field(repr=False)


def require() -> None:
    """See that certificates can be made, before a container is.

    Raises:
        BackendUnavailable: the library is not installed.
    """
    try:
        import cryptography.x509  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"a server on another machine is reached by TLS, and its certificate cannot be made: {error}",
            remedies=(
                'pip install "pg-harness[remote]"',
                "or reach the daemon by ssh:// (DOCKER_HOST=ssh://user@host), which needs no certificate",
            ),
        ) from error


def make(names: Sequence[str]) -> Certificate:
    """A new key, and a certificate for these names.

    Args:
        names: host names and IP addresses by which the server is reached.

    Raises:
        BackendUnavailable: the library is not installed.
    """
    require()
    # Here: 40 ms, and no local server has any of it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    # 64 characters are the most that there may be.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (names[0] if names else "pg-harness")[:64])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now - EARLIER + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in _all(names)]), False)
        # No authority: rustls takes none as a server's own, and nothing else can be signed with it.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        made.public_bytes(serialization.Encoding.PEM).decode(),
        Secret(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode()
        ),
    )


# --- what clients pin: a file for each server that was met -------------------------------------------------


def options(folder: Path, server_id: str, certificate: str) -> dict[str, str]:
    """What an address needs, so that its clients trust this server and no other; the file that it names is written.

    Args:
        folder: of all such files, of all the user's checkouts.
    """
    path = pinned(folder, server_id)
    try:
        there = path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        there = ""
    if there != certificate:
        replace_file(path, certificate)
    else:
        # It is in use: what lies there long and is named by no hint is swept.
        with suppress(OSError):
            os.utime(path)
    return {"sslmode": "verify-full", "sslrootcert": str(path)}


def pinned(folder: Path, server_id: str) -> Path:
    """Where the certificate of a server lies for its clients."""
    return folder / f"{server_id}.crt"


def _all(names: Sequence[str]) -> list[str]:
    # Where it connects to an IP address node-postgres compares with `localhost`; and who is on the server's own machine may
    # reach it there. It costs nothing: who has this certificate pinned trusts no other.
    return list(dict.fromkeys([*names, "localhost", "127.0.0.1"]))


def _alternative(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)
