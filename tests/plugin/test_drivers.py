"""Where the driver of our URL is not the application's: the report, or the end of the run, says which setting gives the right form."""

from __future__ import annotations

import pytest
from fix_plugin import Folder

WITHOUT = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "psycopg2":
                raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
    sys.meta_path.insert(0, Missing())
"""
"""As where psycopg2 is not installed."""

AS_20 = """
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.dialects.postgresql import psycopg2
    postgresql.base.dialect = psycopg2.dialect
"""
"""What SQLAlchemy 2.0 takes a plain URL for; 2.1 takes it for psycopg 3."""

PLAIN = "import os, sqlalchemy\nengine = sqlalchemy.create_engine(os.environ['DATABASE_URL'])\n"
ASYNC = (
    "import os\nfrom sqlalchemy.ext.asyncio import create_async_engine\n"
    "engine = create_async_engine(os.environ['DATABASE_URL'])\n"
)


@pytest.fixture(autouse=True)
def needed() -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("asyncpg")


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if "What gives the right form" in line]


def test_a_plain_url_without_psycopg2(folder: Folder) -> None:
    folder.write(
        conftest=AS_20 + WITHOUT,
        shop=PLAIN,
        test_a="def test_it(): import shop\ndef test_two(): import shop\n",
    )
    result = folder.pytest()
    assert result["failed"] == 2, result.text
    in_report, in_second, in_summary = said(result.text)
    assert in_report == in_second
    assert "takes a plain postgresql:// for psycopg2, which is not installed" in in_report
    assert 'DATABASE_URL = "{sqlalchemy}" in [env] of pg-harness.toml' in in_report
    assert in_summary.startswith("test_a.py::test_it: SQLAlchemy takes")
    assert in_summary.endswith("(and 1 more)")


@pytest.mark.parametrize(("conftest", "workers"), [(AS_20, "0"), (AS_20 + WITHOUT, "1")])
def test_an_asynchronous_engine_that_a_test_module_makes(conftest: str, workers: str, folder: Folder) -> None:
    folder.write(conftest=conftest, shop=ASYNC, test_a="import shop\ndef test_it(): pass\n")
    result = folder.pytest("-n", workers)
    assert result.code != 0
    lines = said(result.text)
    assert len(lines) == 2, result.text
    assert all('DATABASE_URL = "{asyncpg}" in [env]' in line for line in lines)


def test_an_engine_that_a_conftest_makes(folder: Folder) -> None:
    folder.write(as_20=AS_20, conftest="import as_20\n" + ASYNC, test_a="def test_it(): pass\n")
    result = folder.pytest()
    assert result.code == 4
    (line,) = said(result.text)
    assert line.startswith("pg-harness: ")
    assert 'DATABASE_URL = "{asyncpg}"' in line


def test_a_url_of_sqlalchemys_given_to_a_driver(folder: Folder) -> None:
    folder.write(
        test_a="""
        import asyncio, os, asyncpg, psycopg
        URL = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:")
        def test_asyncpg(): asyncio.run(asyncpg.connect(URL))
        def test_psycopg(): psycopg.connect(URL)
        """
    )
    result = folder.pytest("--tb=no")
    assert result["failed"] == 2
    lines = [line for line in result.text.splitlines() if "takes postgresql:// only" in line]
    assert len(lines) == 1, result.text
    assert 'DATABASE_URL = "{url}"' in lines[0]


def test_other_modules_that_are_missing(folder: Folder) -> None:
    folder.write(
        conftest=WITHOUT,
        test_a="def test_own(): import psycopg2\ndef test_other(): import nothing_like_it\n",
    )
    result = folder.pytest()
    assert result["failed"] == 2
    assert "right form" not in result.text
