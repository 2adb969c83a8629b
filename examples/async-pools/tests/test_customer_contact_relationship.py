import pytest
from database import engine
from provisioning import scalar
from sqlalchemy import text

pytestmark = [pytest.mark.integration, pytest.mark.parallel_safe]


@pytest.mark.parametrize("turn", range(8))
async def test_contacts_of_a_customer(turn: int) -> None:
    async with engine().begin() as connection:
        await connection.execute(text("insert into tenants (slug) values ('acme')"))
        await connection.execute(
            text(
                "insert into customers (tenant_id, email) select id, 'a@acme.test' from tenants where slug = 'acme'"
            )
        )
        await connection.execute(
            text("insert into contacts (customer_id, name) select id, 'Ada' from customers")
        )
    assert await scalar("select count(*) from contacts") == 1
    assert await scalar("select count(*) from tenants") == 2
