"""Which form of a URL an application wants, as `init` reads it from the project's files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.migrations.detect import Tree, propose
from harness.migrations.url_forms import wanted

PYDANTIC = """
class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")
    name: str = "shop"
    database_url: PostgresDsn = "postgresql+asyncpg://shop:secret@localhost/shop"
"""
READS = "engine = create_engine(os.environ['DATABASE_URL'])\n"
INI = "[alembic]\nscript_location = m\nsqlalchemy.url = postgresql+asyncpg://me:secret@db/shop\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({".env": "A=1\nDATABASE_URL=postgresql+asyncpg://me:secret@db/shop\n"}, {"DATABASE_URL": "{asyncpg}"}),
        ({".env.example": 'export DB_URI="postgresql+psycopg://x"\n'}, {"DB_URI": "{sqlalchemy}"}),
        (
            {".env": "DATABASE_URL=postgresql+pg8000://x"},
            {"DATABASE_URL": "postgresql+pg8000://{user}:{password}@{host}:{port}/{database}"},
        ),
        ({".env": "DATABASE_URL=postgresql+psycopg2://x\nDB=postgres+psycopg2://x"}, {"DB": "{url}"}),
        ({".env": "DATABASE_URL=postgres://x\nOTHER_URL=postgresql://x\nX=mysql+asyncmy://x\n"}, {}),
        ({"app/config.py": "URL = os.getenv('DATABASE_URL', 'postgresql+asyncpg://x')"}, {"DATABASE_URL": "{asyncpg}"}),
        ({"app/config.py": "URL = config('DB_URL', default=\"postgresql+asyncpg://x\")"}, {"DB_URL": "{asyncpg}"}),
        ({"app/config.py": "from pydantic_settings import BaseSettings\n" + PYDANTIC}, {"SHOP_DATABASE_URL": "{asyncpg}"}),
        # Not read from the environment.
        ({"app/config.py": 'DATABASE_URL = "postgresql+asyncpg://x"\n'}, {}),
        ({"tests/test_x.py": "os.getenv('DATABASE_URL', 'postgresql+asyncpg://x')"}, {}),
        # What the developer runs with comes before a default.
        ({".env": "DATABASE_URL=postgresql://x", "a.py": "getenv('DATABASE_URL', 'postgresql+asyncpg://x')"}, {}),
        ({"alembic.ini": INI, "app/db.py": READS}, {"DATABASE_URL": "{asyncpg}"}),
        ({"alembic.ini": INI, "app/db.py": "engine = create_engine('x')"}, {}),
        ({"alembic.ini": INI, "app/db.py": READS + "url.replace('postgresql://', 'postgresql+asyncpg://')"}, {}),
        ({"alembic.ini": INI, "app/db.py": "asyncpg.connect(os.environ['DATABASE_URL'])"}, {}),
        ({"alembic.ini": INI.replace("postgresql+asyncpg", "driver"), "app/db.py": READS}, {}),
    ],
)  # fmt: skip
def test_what_is_wanted(files: dict[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = wanted(Tree(tmp_path))
    assert {each.variable: each.template for each in found} == expected
    # Neither a password nor an address leaves the file.
    assert "secret" not in repr(found)
    env = {each.variable: (each.template, each.evidence) for each in found}
    for table in ("tool.pg-harness", ""):
        written = tomllib.loads(propose(tmp_path, table=table, env=env))
        assert (written["tool"]["pg-harness"] if table else written).get("env", {}) == expected


def test_the_file_and_its_line_are_the_evidence(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / ".env").write_text("\nDATABASE_URL=postgresql+asyncpg://x\n")
    assert wanted(Tree(tmp_path)) == []
    (found,) = wanted(Tree(tmp_path), tmp_path / "backend")
    assert found.evidence == "backend/.env:2 has postgresql+asyncpg://"
