import pytest

from harness.config import environment
from harness.config.environment import Slot
from harness.dsn import Dsn
from harness.errors import ConfigError

DSNS = {
    "default": Dsn("127.0.0.1", 5432, "app", "p/w", "d 1"),
    "analytics": Dsn("127.0.0.1", 5432, "app", "p/w", "a1"),
}


def render(template: str, own: str = "default") -> str:
    return environment.render(template, own, DSNS, Slot("gw1", 4, 20), "X")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{url}?connection_limit=5&pool_timeout=20", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?connection_limit=5&pool_timeout=20"),
        ("{sqlalchemy}", "postgresql+psycopg://app:p%2Fw@127.0.0.1:5432/d%201"),
        ("{asyncpg}", "postgresql+asyncpg://app:p%2Fw@127.0.0.1:5432/d%201"),
        ("{jdbc}", "jdbc:postgresql://127.0.0.1:5432/d%201?user=app&password=p%2Fw"),
        ("mydriver://{user}:{password}@{host}:{port}/{database}", "mydriver://app:p%2Fw@127.0.0.1:5432/d%201"),
        ("host={host} password={password} dbname={database}", "host=127.0.0.1 password=p/w dbname=d 1"),
        ("{worker} of {workers}, {connections} each, {{literal}}", "gw1 of 4, 20 each, {literal}"),
        ("{analytics.database}", "a1"),
        ("plain", "plain"),
    ],
)  # fmt: skip
def test_templates(template: str, expected: str) -> None:
    assert render(template) == expected


def test_a_table_speaks_of_its_own_database() -> None:
    assert render("{database}", "analytics") == "a1"


@pytest.mark.parametrize(
    "template", ["{nothing}", "{nobody.url}", "{url!r}", "{port:05d}", "{unclosed", "{}"]
)
def test_a_wrong_template_names_the_variable_and_the_choices(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(template)
    assert "env.X" in str(caught.value)
    assert "{sqlalchemy}" in str(caught.value)
    assert "{analytics.url}" in str(caught.value)


def test_variables() -> None:
    values = environment.variables(
        DSNS, {"default": {"A": "{worker}"}, "analytics": {"AN_URL": "{url}"}}, Slot("2", 2, 5)
    )
    assert values["DATABASE_URL"] == DSNS["default"].url
    assert values["PGPASSWORD"] == "p/w"
    assert values["A"] == "2"
    assert values["AN_URL"] == DSNS["analytics"].url


def test_patch_removes_what_bends_and_returns_its_undo() -> None:
    environ = {
        "PGHOSTADDR": "10.0.0.1",
        "PGOPTIONS": "-c x=1",
        "DATABASE_URL": "old",
        "HOME": "/h",
        "PGSSLMODE": "require",
    }
    before = dict(environ)
    undo = environment.patch(environ, {"DATABASE_URL": "new", "PGHOST": "127.0.0.1"})
    assert environ == {"DATABASE_URL": "new", "PGHOST": "127.0.0.1", "HOME": "/h"}
    undo()
    assert environ == before


def test_the_undo_leaves_alone_what_somebody_else_has_changed() -> None:
    environ = {"DATABASE_URL": "old"}
    undo = environment.patch(environ, {"DATABASE_URL": "new", "PGHOST": "h"})
    environ["DATABASE_URL"] = "theirs"
    undo()
    assert environ == {"DATABASE_URL": "theirs"}
