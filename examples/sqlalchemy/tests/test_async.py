"""The same with asyncpg."""

import asyncio

import pytest
from orders import async_engine, count, place


async def orders_after(customer):
    place(customer)
    found = await count()
    # asyncpg's connections belong to the loop that opened them.
    await async_engine.dispose()
    return found


@pytest.mark.parametrize("customer", ["Ada", "Grace"])
def test_one_order(customer):
    assert asyncio.run(orders_after(customer)) == 1
