"""Nothing to set up: each test starts from the migrated database, and the engine's pool stays open."""

import pytest
from orders import place


@pytest.mark.parametrize("customer", ["Ada", "Grace", "Edsger"])
def test_the_first_order_is_number_one(customer):
    assert place(customer) == 1
