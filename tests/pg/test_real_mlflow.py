"""MLflow's Alembic history, from PyPI: its base tables through ``python:``, its revisions through ``alembic``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank

pytest.importorskip("mlflow", reason="tests/requirements-real.txt is not installed")

BASE = """
from sqlalchemy import create_engine

def base(url):
    from mlflow.store.db.utils import InitialBase
    InitialBase.metadata.create_all(create_engine(url.replace("postgresql", "postgresql+psycopg", 1)))
"""
INI = "[alembic]\nscript_location = mlflow:store/db_migrations\n"


@pytest.mark.parametrize("version", ["15", "18"])
def test_mlflow(version: str, blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    blank = blank_on(version)
    (tmp_path / "tables.py").write_text(BASE)
    (tmp_path / "alembic.ini").write_text(INI)
    blank.migrate(tmp_path, "python:tables:base", "alembic", timeout=150)
    tables = blank.tables()
    assert {
        "alembic_version",
        "experiments",
        "runs",
        "metrics",
        "params",
        "model_versions",
        "trace_info",
    } <= tables
    assert len(tables) > 30
    assert blank.value("SELECT count(*) FROM alembic_version") == 1
    assert (
        blank.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'migrator'")
        == 0
    )
    assert blank.sessions() == 0
