"""A server that others run: used only where it is clear that tests are meant to run there."""

from __future__ import annotations

import os

import pytest
from fix_backends import Checkout
from fix_servers import binaries_of

from harness.config import project
from harness.config.load import load
from harness.dsn import Dsn
from harness.errors import BackendUnavailable
from harness.postgres.session import Session, ident
from harness.runs.run import Run
from harness.servers import foreign
from harness.servers.external import ExternalBackend
from harness.servers.process.backend import ProcessBackend


@pytest.mark.parametrize(
    ("host", "database"),
    [
        ("shop.abc123.eu-west-1.rds.amazonaws.com", "app"),
        ("shop.postgres.database.azure.com", "app"),
        ("/cloudsql/shop:europe-west1:main", "app"),
        ("ep-cool-name-123.eu-central-1.aws.neon.tech", "app"),
        ("db.abcdefgh.supabase.co", "postgres"),
        ("aws-0-eu-central-1.pooler.supabase.com", "postgres"),
        ("dpg-abc-a.frankfurt-postgres.render.com", "app"),
        ("ec2-1-2-3-4.compute-1.amazonaws.com", "d1234"),
        ("EP-X.NEON.TECH.", "app"),
        ("db-prod.internal", "app"),
        ("prod1.example.org", "app"),
        ("10.0.0.1", "shop_production"),
        ("10.0.0.1", "PROD"),
    ],
)
def test_what_looks_like_production_is_not_even_asked(host: str, database: str) -> None:
    dsn = Dsn(host, 5432, "u", "topsecret", database)
    with pytest.raises(BackendUnavailable, match="looks like production") as caught:
        ExternalBackend(dsn.url, origin="PGHARNESS_SERVER_URL").find("", "run")
    said = str(caught.value)
    assert "PGHARNESS_ALLOW_FOREIGN=1" in said
    assert "PGHARNESS_SERVER_URL" in said
    assert "topsecret" not in said


@pytest.mark.parametrize(
    ("host", "database"),
    [
        ("127.0.0.1", "postgres"),
        ("products", "product"),
        ("reproduce.example.org", "nonprod1x"),
        ("postgres", "app"),
    ],
)
def test_what_does_not(host: str, database: str) -> None:
    assert foreign.production(Dsn(host, 5432, "u", "", database)) == ""


@pytest.fixture
def somebodys(place: Checkout) -> Dsn:
    """A server with nothing on it, known by its URL only."""
    folder = binaries_of("15") or binaries_of("18")
    if folder is None:
        pytest.skip("no PostgreSQL is installed on this machine")
    state, cache = project.state_dir(place.environ), project.cache_dir(place.environ)
    backend = ProcessBackend(place.environ, state=state, cache=cache, binaries=folder)
    return backend.start(place.request("run-1")).dsn


def test_databases_of_others_need_a_word(somebodys: Dsn, place: Checkout) -> None:
    (place.root / "pg-harness.toml").write_text("migrations = []\n")
    place.environ["PGHARNESS_SERVER_URL"] = somebodys.url

    def run() -> None:
        settings = load(place.environ, start=place.root)
        with (
            Run.open_with(settings, place.environ) as harness,
            harness.lease() as lease,
            lease.connect() as one,
        ):
            one.execute("create table t (id int)")

    # Nobody's but ours, of this run and of a killed one.
    run()
    run()
    with Session.connect(somebodys) as session:
        names = [f"shop_{os.urandom(3).hex()}_{number}" for number in range(7)]
        for name in names:
            session.execute(f"create database {ident(name)}")
        with pytest.raises(
            BackendUnavailable, match="databases that pg-harness has not made: shop_"
        ) as caught:
            run()
        assert "and 2 more" in str(caught.value)
        assert "allow_foreign = true" in str(caught.value)
        place.environ["PGHARNESS_ALLOW_FOREIGN"] = "1"
        run()
        for name in names:
            session.execute(f"drop database {ident(name)}")
    del place.environ["PGHARNESS_ALLOW_FOREIGN"]
    run()


def test_the_database_of_the_url_counts_once_somebody_has_filled_it(somebodys: Dsn) -> None:
    """Images make one that is empty (POSTGRES_DB), and name it in the URL."""
    with Session.connect(somebodys) as session:
        session.execute("create database app")
    dsn = somebodys.with_database("app")
    ExternalBackend(dsn.url).find("", "run")
    with Session.connect(dsn) as session:
        session.execute("create table orders (id int)")
    with pytest.raises(BackendUnavailable, match="has not made: app"):
        ExternalBackend(dsn.url).find("", "run")
    ExternalBackend(dsn.url, allow_foreign=True).find("", "run")
    with pytest.raises(BackendUnavailable, match="has not made: app"):
        list(ExternalBackend(dsn.url).examine())
    with Session.connect(somebodys) as session:
        session.execute("drop database app")
