"""`uninstall` as a user of one's own: it lists, asks, removes all of this user's, and nothing of anybody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fix_backends import docker, until
from fix_users import User

from harness.config.project import project_id

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]


def left(user: User) -> list[Path]:
    """What there is of this user's."""
    places = [user.memory, user.home / ".cache" / "pg-harness", user.home / ".local" / "state" / "pg-harness"]
    return [place for place in places if place.exists()]


def test_all_of_it_goes_after_a_yes(new_user: Callable[..., User]) -> None:
    user, other = new_user("leaving"), new_user("staying")
    mine, theirs = user.ok("up").strip(), other.ok("up").strip()
    user.ok("run", "--", "true")
    user.ok("bake")
    said = user.ok("uninstall", "--dry-run")
    assert said.count("server   ") == 2
    assert f"(your databases of {user.root})" in said
    assert "baked    directory" in said
    assert f"folder   {user.home}/.local/state/pg-harness" in said
    assert str(other.home) not in said

    refused = user.refused("uninstall")
    assert "nothing was removed: this is no terminal to ask on. Add --yes" in refused
    psycopg.connect(mine).close()

    done = json.loads(user.ok("uninstall", "--yes", "--json"))
    assert len(done["removed"]) == len(said.splitlines())
    assert left(user) == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(mine)
    psycopg.connect(theirs).close()
    assert (user.root / "db" / "migrations" / "001_users.sql").exists()
    again = user.call("uninstall", "--yes")
    assert again.returncode == 0
    # A command notes what it decided, and that is all there is.
    assert "server   " not in again.stdout
    # And one begins anew.
    user.ok("up")
    user.ok("uninstall", "--yes")
    other.ok("uninstall", "--yes")


def test_what_is_in_use_stays_with_all_of_it(new_user: Callable[..., User]) -> None:
    user = new_user("busy")
    inside = f"{user.top}/inside"
    script = f"touch {inside}; for i in $(seq 300); do [ -e {inside}-go ] && exit; sleep 0.1; done; exit 1"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(user.call, "run", "--", "sh", "-c", script)
        try:
            until(lambda: Path(inside).exists() or running.done(), seconds=60, what="the run to begin")
            said = user.refused("uninstall", "--yes")
            assert "1 server could not be ended" in said
            assert "somebody uses it" in said
            assert left(user)
        finally:
            Path(f"{inside}-go").touch()
        assert running.result().returncode == 0
    user.ok("uninstall", "--yes")
    assert left(user) == []


@pytest.mark.docker
def test_containers_and_images_go_too(new_user: Callable[..., User]) -> None:
    user = new_user("dockerleft", docker=os.stat("/var/run/docker.sock").st_gid)
    user.environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15"}
    user.environ.pop("PGHARNESS_PG_VERSION")
    user.ok("up")
    label = f"label=dev.pg-harness.project={project_id(user.root)}"
    assert docker("ps", "-aq", "--filter", label)
    user.ok("uninstall", "--yes")
    assert docker("ps", "-aq", "--filter", label) == ""
