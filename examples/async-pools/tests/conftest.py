from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
async def engine_of_the_loop() -> AsyncIterator[None]:
    """asyncpg's connections belong to an event loop, of which each test has its own. Nothing is deleted here."""
    from database import engine

    yield
    await engine().dispose()
    engine.cache_clear()
