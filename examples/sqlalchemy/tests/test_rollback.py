"""The rollback recipe, for suites that have it: it goes on working.

The session joins a transaction that the test's end rolls back; ``commit()`` inside becomes a savepoint.
"""

import pytest
from orders import Order, engine
from sqlalchemy import func, select
from sqlalchemy.orm import Session


@pytest.fixture
def session():
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()


@pytest.mark.parametrize("customer", ["Ada", "Grace"])
def test_rolled_back(session, customer):
    session.add(Order(customer=customer))
    session.commit()
    assert session.scalar(select(func.count()).select_from(Order)) == 1
