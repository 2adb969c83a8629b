import pytest
from provisioning import provision, provision_many, scalar

pytestmark = [pytest.mark.integration, pytest.mark.parallel_safe]


@pytest.mark.parametrize("turn", range(6))
async def test_the_first_subscriber_is_the_first(turn: int) -> None:
    # The same name, the same addresses and the same id in every test and worker.
    assert await provision(7) == 1
    assert await scalar("select host(ipv4) from subscribers") == "10.0.0.7"


@pytest.mark.parametrize("turn", range(6))
async def test_a_pool_in_use(turn: int) -> None:
    await provision_many(15)
    assert await scalar("select count(*) from subscribers") == 15
