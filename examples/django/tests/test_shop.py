"""pytest-django as usual; nothing is created or migrated by it, and no test flushes."""

import pytest
from django.test import TestCase
from shop.models import Product


@pytest.mark.django_db
def test_rolled_back():
    assert Product.objects.create(sku="a", title="A", price_cents=1).pk


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("sku", ["a", "b"])
def test_committed(sku):
    # Committed for real; gone before the next test, and the first number is 1 again.
    assert Product.objects.create(sku="a", title=sku, price_cents=1).pk == 1
    assert Product.objects.count() == 1


class TestReviews(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.product = Product.objects.create(sku="b", title="B", price_cents=2)

    def test_one(self):
        self.product.reviews.create(stars=5)
        assert self.product.reviews.count() == 1

    def test_two(self):
        assert self.product.reviews.count() == 0
