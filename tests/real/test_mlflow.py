"""MLflow's Alembic history, from PyPI: its base tables through ``python:``, its revisions through ``alembic``; and resets of
what its stores write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank
from fix_reset_real import real_reset

pytest.importorskip("mlflow", reason="tests/requirements-real.txt is not installed")

BASE = """
from sqlalchemy import create_engine

def base(url):
    from mlflow.store.db.utils import InitialBase
    InitialBase.metadata.create_all(create_engine(url.replace("postgresql", "postgresql+psycopg", 1)))
"""
INI = "[alembic]\nscript_location = mlflow:store/db_migrations\n"

# Two training runs, one of which is thrown away, and a model that is registered.
TRAINING = """
    import os
    from mlflow.entities import Metric, Param, RunTag, ViewType
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    url = os.environ["DATABASE_URL"].replace("postgresql", "postgresql+psycopg", 1)
    tracking = Tracking(url, "/nonexistent/artifacts")
    experiment = tracking.create_experiment("tried")
    for name in ("good", "bad"):
        run = tracking.create_run(experiment, "me", 1, [RunTag("stage", "test")], name)
        tracking.log_batch(
            run.info.run_id,
            metrics=[Metric("loss", 1 / (step + 1), 1000 + step, step) for step in range(200)],
            params=[Param(f"p{i}", "x" * 400) for i in range(20)],
            tags=[RunTag("note", "y" * 3000)],
        )
    tracking.delete_run(run.info.run_id)
    tracking.set_experiment_tag(experiment, __import__("mlflow").entities.ExperimentTag("owner", "me"))
    other = tracking.create_experiment("renamed")
    tracking.rename_experiment(other, "renamed again")
    tracking.delete_experiment(other)
    assert len(tracking.search_runs([experiment], "metrics.loss < 2", ViewType.ALL)) == 2
    registry = Registry(url)
    registry.create_registered_model("model")
    version = registry.create_model_version("model", "/nonexistent/artifacts/model", None)
    registry.set_registered_model_alias("model", "best", version.version)
    registry.update_registered_model("model", "described")
"""


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
    with real_reset(blank, tmp_path) as lease:
        lease.assert_restores(
            TRAINING,
            {"experiments", "runs", "metrics", "latest_metrics", "params", "tags", "experiment_tags",
             "registered_models", "model_versions", "registered_model_aliases"},
        )  # fmt: skip
