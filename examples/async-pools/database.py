"""The application's engine: one for the process, sized by the environment, as the settings of the deployment have it."""

from __future__ import annotations

import os
from functools import cache

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


@cache
def engine() -> AsyncEngine:
    return create_async_engine(
        os.environ["ASYNC_DATABASE_URL"],
        pool_size=int(os.environ.get("PG_POOL_SIZE", "10")),
        max_overflow=int(os.environ.get("PG_MAX_OVERFLOW", "20")),
        pool_timeout=float(os.environ.get("PG_POOL_TIMEOUT", "30")),
    )
