"""The module in containers: brought with the scripts at the start, later where it was not, and kept in baked images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_backends import Checkout
from fix_fleets import Estate
from fix_native import packaged

from harness.config.project import Project
from harness.reset.rewind import module
from harness.reset.rewind.module import Prepared
from harness.runs import rewinding
from harness.servers.docker import spec

pytestmark = pytest.mark.docker

IMAGES = ["pgharness-test:15", "pgharness-test:17", "pgharness-test:busybox"]


@pytest.fixture(autouse=True)
def modules() -> None:
    packaged(15)
    packaged(17)


@pytest.fixture
def no_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into a container that runs already: that would take a tenth of a second."""

    def refuse(name: str, content: bytes) -> bytes:
        raise AssertionError(f"{name} is put into a running container")

    monkeypatch.setattr(spec, "beside", refuse)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("no_later_step")
def test_it_comes_with_the_scripts(new_checkout: Callable[[], Checkout], image: str) -> None:
    checkout = new_checkout()
    settings = checkout.settings(backend="docker", image=image)
    project = Project.of(settings, checkout.environ)
    with checkout.ensure(settings, files=lambda: rewinding.files(project)) as server:
        prepared = rewinding.prepare(project, server, server.session)
        assert isinstance(prepared, Prepared)
        path = server.session.value("select min(probin) from pg_proc where proname = 'pgh_rewind'")
        assert path == f"/pgharness/pgh_rewind-{prepared.digest[:12]}.so"
        assert rewinding.known(project, server, server.session) == prepared


def test_one_that_was_started_without_it_gets_it(new_checkout: Callable[[], Checkout]) -> None:
    """As an older version has started it; and once more after a restart of the container."""
    checkout = new_checkout()
    settings = checkout.settings(backend="docker", image="pgharness-test:17")
    project = Project.of(settings, checkout.environ)
    with checkout.ensure(settings, purpose="up") as server:
        prepared = rewinding.prepare(project, server, server.session)
        assert isinstance(prepared, Prepared)
    backend, info = server.backend, server.info
    backend.daemon.client.containers.get(info.handle).restart(timeout=10)  # type: ignore[attr-defined]
    with checkout.ensure(settings, purpose="up") as server:
        assert rewinding.known(project, server, server.session) == prepared


def test_a_server_without_modules_is_reset_row_wise(
    new_checkout: Callable[[], Checkout], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = new_checkout()
    monkeypatch.setattr(module, "folders", lambda cache: (checkout.root,))
    settings = checkout.settings(backend="docker", image="pgharness-test:17")
    project = Project.of(settings, checkout.environ)
    with checkout.ensure(settings, files=lambda: rewinding.files(project)) as server:
        assert rewinding.prepare(project, server, server.session) == (
            "there is no module for PostgreSQL 17 on x86_64: `pg-harness build-native` makes one"
        )


@pytest.mark.usefixtures("no_later_step")
def test_a_baked_image_was_tried_already(
    new_estate: Callable[..., Estate], monkeypatch: pytest.MonkeyPatch
) -> None:
    estate = new_estate(backend="docker", image="pgharness-test:17")
    with estate.open() as fleet:
        assert fleet.baked.built
        # A trial from here on would be one for each worker.
        monkeypatch.setattr("harness.reset.rewind.selftest.run", None)
        fleet.leases(2)
        assert {type(member.rewinding) for member in fleet.members.values()} == {Prepared}
