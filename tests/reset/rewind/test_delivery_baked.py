"""The module on local servers that start from baked data: its functions are there, the file is brought, nothing is tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_fleets import Estate
from fix_native import packaged

from harness.errors import BackendUnavailable
from harness.reset.rewind.module import Prepared
from harness.runs import rewinding


@pytest.fixture
def estate(new_estate: Callable[..., Estate]) -> Estate:
    packaged(15)
    return new_estate(backend="process")


def test_each_worker_has_it_without_a_trial(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    with estate.open() as fleet:
        assert fleet.baked.built
        monkeypatch.setattr("harness.reset.rewind.selftest.run", None)
        leases = fleet.leases(2, watch=True)
        for member in fleet.members.values():
            prepared = member.rewinding
            assert isinstance(prepared, Prepared)
            assert (Path(member.server.info.handle) / f"pgh_rewind-{prepared.digest[:12]}.so").is_file()
        with leases[0].connect() as connection:
            connection.execute("delete from users")
        assert leases[0].reset().strategy == "rewind"


def test_other_modules_are_another_base(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each server that starts from it would have to try the new one."""
    before, _ = estate.baker().key()
    assert estate.baker().key()[0] == before
    assert estate.baker(engine="rows").key()[0] != before
    monkeypatch.setattr(rewinding, "mark", lambda project, major: "another")
    assert estate.baker().key()[0] != before


def test_a_run_says_what_its_settings_ask_for_in_vain(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.reset.rewind.module.folders", lambda cache: (estate.root,))
    with pytest.raises(BackendUnavailable, match="databases cannot be reset by pages here") as caught:
        estate.open(engine="rewind").close()
    assert "there is no module for PostgreSQL" in str(caught.value)
