"""An application as many are: its engines are bound when it is imported."""

from __future__ import annotations

import os
from datetime import datetime

from sqlalchemy import create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(os.environ["SQLALCHEMY_DATABASE_URL"])
async_engine = create_async_engine(os.environ["ASYNC_DATABASE_URL"])


class Base(DeclarativeBase):
    """The schema is in migrations/."""


class Order(Base):
    """One order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    placed: Mapped[datetime] = mapped_column(server_default=func.now())


def place(customer: str) -> int:
    """Place an order; return its number."""
    with Session(engine) as session, session.begin():
        order = Order(customer=customer)
        session.add(order)
        session.flush()
        return order.id


async def count() -> int:
    """How many orders there are."""
    async with AsyncSession(async_engine) as session:
        return (await session.execute(select(func.count()).select_from(Order))).scalar_one()
