"""A database's address as a value: parsed once, rendered for every kind of client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from harness.errors import ConfigError

FORMS = ("url", "sqlalchemy", "asyncpg", "jdbc")
"""The forms of an address: placeholders of the settings' ``env``, words of ``url --form``, attributes of a :class:`Dsn`, and
with ``_url`` behind them (but for the first) of a lease."""

TLS = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
"""Parameters of TLS by which a server is known, and libpq's variables for them."""


class Secret(str):
    """A text that shows itself to whoever uses it, and not to whoever prints a variable that holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"


@dataclass(frozen=True, repr=False)
class Dsn:
    """Where a database is and how to log in.

    Attributes:
        host: name, IP address (IPv6 without brackets) or the folder of a Unix socket (begins with ``/``).
        port: TCP port, or the number in the socket's name.
        user: role to log in as.
        password: in clear text; never in ``repr``.
        database: database name, unescaped.
        options: further libpq parameters, for instance ``{"sslmode": "require"}``.
        scram: whether it is of a server of ours: our sessions prove there that they know the password, and send it to nobody. Whoever
            has taken the port of a server that ended would ask for it.
    """

    host: str
    port: int
    user: str
    password: str
    database: str
    options: Mapping[str, str] = field(default_factory=dict)
    scram: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        # Tools that print a traceback's variables (pytest --showlocals, rich) print it by its repr.
        object.__setattr__(self, "password", Secret(self.password))

    @classmethod
    def parse(cls, url: str, *, origin: str = "a URL") -> Dsn:
        """Read a ``postgresql://`` URL, as libpq documents it (RFC 3986; one host).

        SQLAlchemy's ``postgresql+driver://`` is accepted: that is what people have in their settings.

        Raises:
            ConfigError: the text is no such URL. The text itself is not repeated: it may hold a password.
        """
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{origin} is not a valid PostgreSQL URL: {error}", origin=origin) from None
        scheme = parts.scheme.split("+", 1)[0].removeprefix("jdbc:")
        if scheme not in ("postgresql", "postgres"):
            raise ConfigError(
                f"{origin} is not a PostgreSQL URL: it should begin with postgresql:// "
                f"(for instance postgresql://user:password@127.0.0.1:5432/postgres)",
                origin=origin,
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        host = options.pop("host", None) or unquote(parts.hostname or "") or "127.0.0.1"
        if "," in host or "," in parts.netloc.rpartition("@")[2]:
            raise ConfigError(f"{origin} names several hosts; name the one server to use", origin=origin)
        raw_port = options.pop("port", None)
        if raw_port is not None and not raw_port.isdigit():
            raise ConfigError(f"{origin} has a port that is no number", origin=origin)
        user = unquote(parts.username or "") or options.pop("user", "") or "postgres"
        return cls(
            host=host,
            port=int(raw_port) if raw_port else (port or 5432),
            user=user,
            password=unquote(parts.password or "") or options.pop("password", ""),
            database=unquote(parts.path.lstrip("/")) or options.pop("dbname", "") or user,
            options=options,
        )

    def with_database(self, database: str) -> Dsn:
        """The same server and role, another database."""
        return replace(self, database=database)

    def with_user(self, user: str, password: str) -> Dsn:
        """The same server and database, another role."""
        return replace(self, user=user, password=password)

    def with_options(self, options: Mapping[str, str]) -> Dsn:
        """The same address with further parameters; one that it has already is replaced."""
        return replace(self, options={**self.options, **options})

    @property
    def url(self) -> str:
        """``postgresql://user:password@host:port/database``, every part percent-encoded."""
        return self._url("postgresql")

    @property
    def sqlalchemy(self) -> str:
        """For SQLAlchemy with psycopg 3: ``postgresql+psycopg://…``."""
        return self._url("postgresql+psycopg")

    @property
    def asyncpg(self) -> str:
        """For SQLAlchemy with asyncpg: ``postgresql+asyncpg://…``.

        What the address asks of TLS stands in its parameter ``dsn``: SQLAlchemy makes an argument of ``asyncpg.connect`` of each
        parameter, which has none for libpq's names, and reads them in a URL.
        """
        tls = {name: value for name, value in self.options.items() if name in TLS}
        if not tls:
            return self._url("postgresql+asyncpg")
        others = {name: value for name, value in self.options.items() if name not in TLS}
        return replace(self, options={**others, "dsn": f"postgresql://{_query(tls)}"})._url(
            "postgresql+asyncpg"
        )

    @property
    def jdbc(self) -> str:
        """For pgJDBC, which takes the role as parameters: ``jdbc:postgresql://host:port/db?user=…``."""
        query = _query({"user": self.user, "password": self.password, **self.options})
        return f"jdbc:postgresql://{_bracketed(self.host)}:{self.port}/{quote(self.database, safe='')}{query}"

    @property
    def masked(self) -> str:
        """The URL with the password replaced, for people and logs."""
        return (
            replace(self, password="***" if self.password else "")
            ._url("postgresql")
            .replace("%2A%2A%2A", "***")
        )

    def libpq(self) -> dict[str, str]:
        """The ``PG*`` variables that libpq and psql read for this address."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            **{variable: self.options[name] for name, variable in TLS.items() if name in self.options},
        }

    def _url(self, scheme: str) -> str:
        login = quote(self.user, safe="")
        if self.password:
            login += ":" + quote(self.password, safe="")
        if self.host.startswith("/"):
            query = _query({"host": self.host, "port": str(self.port), **self.options})
            return f"{scheme}://{login}@/{quote(self.database, safe='')}{query}"
        place = f"{_bracketed(self.host)}:{self.port}"
        return f"{scheme}://{login}@{place}/{quote(self.database, safe='')}{_query(self.options)}"

    def __repr__(self) -> str:
        return f"<Dsn {self.masked}>"

    __str__ = __repr__


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _query(options: Mapping[str, str]) -> str:
    return (
        "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in options.items())
        if options
        else ""
    )
