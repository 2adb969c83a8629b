import pickle

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from harness.dsn import Dsn
from harness.errors import ConfigError

AWKWARD = Dsn("127.0.0.1", 5433, "üser@x", "p:a/s?s#w%r&d ", "dä ta/b?ase#1")


def test_a_url_survives_parse_and_render() -> None:
    for dsn in (
        AWKWARD,
        Dsn("::1", 5432, "u", "", "d"),
        Dsn("db.example", 1, "u", "p", "d", {"sslmode": "require", "application_name": "a b"}),
        Dsn("/var/run/post gres", 5432, "u", "p", "d"),
    ):
        assert Dsn.parse(dsn.url) == dsn


def test_libpq_reads_our_url_as_we_mean_it() -> None:
    read = conninfo_to_dict(AWKWARD.url)
    assert read == {
        "host": "127.0.0.1",
        "port": "5433",
        "user": AWKWARD.user,
        "password": AWKWARD.password,
        "dbname": AWKWARD.database,
    }


def test_renderings() -> None:
    dsn = Dsn("127.0.0.1", 5432, "app", "s3 cret", "my db")
    assert dsn.url == "postgresql://app:s3%20cret@127.0.0.1:5432/my%20db"
    assert dsn.sqlalchemy == "postgresql+psycopg://app:s3%20cret@127.0.0.1:5432/my%20db"
    assert dsn.asyncpg == "postgresql+asyncpg://app:s3%20cret@127.0.0.1:5432/my%20db"
    assert dsn.jdbc == "jdbc:postgresql://127.0.0.1:5432/my%20db?user=app&password=s3%20cret"
    assert dsn.libpq() == {
        "PGHOST": "127.0.0.1",
        "PGPORT": "5432",
        "PGUSER": "app",
        "PGPASSWORD": "s3 cret",
        "PGDATABASE": "my db",
    }


def test_sqlalchemys_scheme_is_understood() -> None:
    assert Dsn.parse("postgresql+asyncpg://u:p@h:7/d") == Dsn("h", 7, "u", "p", "d")
    assert Dsn.parse("postgres://h").database == "postgres"


def test_the_password_is_never_shown() -> None:
    for text in (repr(AWKWARD), str(AWKWARD), AWKWARD.masked, repr([AWKWARD])):
        assert "p:a" not in text
        assert "p%3Aa" not in text
        assert "***" in text


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:topsecret@h/d",
        "topsecret",
        "postgresql://u:topsecret@h:x/d",
        "postgresql://a:topsecret@h1,h2/d",
    ],
)
def test_a_wrong_url_is_named_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Dsn.parse(url, origin="--server-url")
    assert "--server-url" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    assert "topsecret" not in repr(caught.value)


def test_pickle() -> None:
    assert pickle.loads(pickle.dumps(AWKWARD)) == AWKWARD
    assert issubclass(psycopg.OperationalError, psycopg.Error)
