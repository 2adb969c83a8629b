"""Database-heavy: marked for serial runs by the guide; here each has the pool to itself."""

import os

import pytest
from provisioning import provision_many, scalar

pytestmark = [pytest.mark.integration, pytest.mark.serial_only]


@pytest.mark.parametrize("turn", range(4))
async def test_many_subscribers_at_once(turn: int) -> None:
    size = int(os.environ["PG_POOL_SIZE"])
    assert sorted(await provision_many(size)) == list(range(1, size + 1))
    assert await scalar("select count(*) from radius_profiles") == size


async def test_the_schema_is_there() -> None:
    tables = await scalar("select count(*) from information_schema.tables where table_schema = 'public'")
    assert tables == 5
