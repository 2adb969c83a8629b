"""What the application does: provisions subscribers, many at a time."""

from __future__ import annotations

import asyncio

from database import engine
from sqlalchemy import text


async def provision(number: int, tenant: str = "default") -> int:
    """One dual-stack subscriber with its profile; its id."""
    async with engine().begin() as connection:
        found = await connection.execute(
            text(
                "insert into subscribers (tenant_id, username, ipv4, ipv6) "
                "select id, :name, cast(:v4 as inet), cast(:v6 as inet) from tenants where slug = :tenant returning id"
            ),
            {"name": f"sub-{number}", "v4": f"10.0.0.{number}", "v6": f"fd00::{number:x}", "tenant": tenant},
        )
        subscriber = int(found.scalar_one())
        await connection.execute(
            text("insert into radius_profiles (subscriber_id, download_kbit) values (:id, 100000)"),
            {"id": subscriber},
        )
    return subscriber


async def provision_many(count: int, tenant: str = "default") -> list[int]:
    """As many at once as the pool has connections."""
    return await asyncio.gather(*(provision(number, tenant) for number in range(1, count + 1)))


async def scalar(statement: str, **parameters: object) -> object:
    async with engine().connect() as connection:
        return (await connection.execute(text(statement), parameters)).scalar()
