"""The Docker daemon's own troubles: restarted or killed while leases are open, no room on its disk."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fix_backends import until
from fix_daemons import SMALL, OwnDaemon
from fix_fleets import Estate

from harness.errors import BackendUnavailable, HarnessError, ServerLost
from harness.runs.run import Run

pytestmark = pytest.mark.docker
Make = Callable[[int], OwnDaemon]


def there(new_estate: Callable[..., Estate], daemon: OwnDaemon) -> Estate:
    """A project whose servers are that daemon's."""
    estate = new_estate(backend="docker", image=SMALL)
    estate.environ["DOCKER_HOST"] = daemon.host
    return estate


@pytest.mark.parametrize(
    "kill",
    [pytest.param(False, id="restarted"), pytest.param(True, id="killed", marks=pytest.mark.slow)],
)
def test_a_daemon_that_goes_away_while_leases_are_open(
    own_daemon: Make, new_estate: Callable[..., Estate], kill: bool
) -> None:
    daemon = own_daemon(1500)
    estate = there(new_estate, daemon)
    shared = estate.settings(isolation="database")
    with Run.open_with(shared, estate.environ, purpose="up") as mine:
        with mine.lease().connect() as connection:
            connection.execute("insert into users (name) values ('precious')")
        yours = mine.server.info.server_id
    fleet = estate.open()
    first, second = fleet.leases(2)
    theirs = Run.open_with(shared, estate.environ)
    lease = theirs.lease()
    daemon.end(kill=kill)
    began = time.monotonic()
    for lost in (first, lease):
        with pytest.raises(ServerLost):
            lost.reset()
    # Without a daemon nothing can be started, and that is what is said.
    with pytest.raises(BackendUnavailable, match="does not answer"):
        estate.open()
    assert time.monotonic() - began < 15
    daemon.start()
    with pytest.raises(ServerLost):
        second.reset()
    # The run goes on with a server for a worker that is new; so does the next run, and yours has its data.
    with fleet.lease("3").connect() as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]
    fleet.close()
    with pytest.raises(ServerLost):
        theirs.close()
    with Run.open_with(shared, estate.environ) as again, again.lease().connect() as connection:
        assert again.server.info.server_id != theirs.server.info.server_id
    with Run.open_with(shared, estate.environ, purpose="up") as mine:
        assert mine.server.info.server_id == yours
        with mine.session._leased("1").connect() as connection:
            assert connection.execute("select count(*) from users").fetchone() == (2,)
    assert estate.purposes() == ["run", "up"]


def test_a_full_disk(own_daemon: Make, new_estate: Callable[..., Estate]) -> None:
    daemon = own_daemon(330)
    estate = there(new_estate, daemon)
    estate.migrate(
        "create unlogged table big as select repeat(md5(n::text), 30) from generate_series(1, 120000) n"
    )
    # Migrated it fits, a second time, as an image, it does not; its log, which is not in the image, must not decide.
    with pytest.raises(HarnessError, match="no space left on device") as caught:
        estate.ensure()
    assert "Traceback" not in str(caught.value)
    until(lambda: estate.purposes() == [], seconds=10, what="the builder to be gone")
    assert daemon.docker("images", "-aq") == daemon.docker("images", "-q", SMALL)
    assert daemon.docker("ps", "-aq") == ""
    assert daemon.docker("volume", "ls", "-q") == ""
    estate.migrate("create table bigger as select repeat(md5(n::text), 30) from generate_series(1, 300000) n")
    # The server ends where it cannot write its log: its own last words tell why.
    with pytest.raises(HarnessError, match=r"No space left on device|wrote only") as caught:
        estate.ensure()
    assert "there is no room left" in caught.value.full_text
    assert estate.purposes() == []
    # What fits is baked as ever.
    estate.migrate("create table small (id int)")
    assert estate.ensure().built
