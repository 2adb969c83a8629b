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
        ("{url:connection_limit=5&pool_timeout=20}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?connection_limit=5&pool_timeout=20"),
        ("{url:connection_limit={connections}}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?connection_limit=20"),
        ("{sqlalchemy:application_name=w {worker}}!", "postgresql+psycopg://app:p%2Fw@127.0.0.1:5432/d%201?application_name=w%20gw1!"),
        ("{jdbc:prepareThreshold=0}", "jdbc:postgresql://127.0.0.1:5432/d%201?user=app&password=p%2Fw&prepareThreshold=0"),
        ("{jdbc:user=other}", "jdbc:postgresql://127.0.0.1:5432/d%201?user=other&password=p%2Fw"),
        ("{analytics.url:schema=a}", "postgresql://app:p%2Fw@127.0.0.1:5432/a1?schema=a"),
        # As a person writes it, and as it stands in a URL that a person has copied.
        ("{url:options=-c search_path=a,b}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?options=-c%20search_path%3Da%2Cb"),
        ("{url:options=-c%20search_path%3Da%2Cb}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?options=-c%20search_path%3Da%2Cb"),
        ("{url:a=1+1&b=%26%25&c=é&d=}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?a=1%2B1&b=%26%25&c=%C3%A9&d="),
        ("{url:own={password}}", "postgresql://app:p%2Fw@127.0.0.1:5432/d%201?own=p%2Fw"),
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


SOCKET = Dsn("/run/pg", 5433, "app", "p", "d", {"sslmode": "require"})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{url:connection_limit=5}", "postgresql://app:p@/d?host=%2Frun%2Fpg&port=5433&sslmode=require&connection_limit=5"),
        # What is there already is replaced where it stands: of two, each client believes another one.
        ("{url:sslmode=disable&a=b}", "postgresql://app:p@/d?host=%2Frun%2Fpg&port=5433&sslmode=disable&a=b"),
        ("{asyncpg:host=/tmp}", "postgresql+asyncpg://app:p@/d?host=%2Ftmp&port=5433&dsn=postgresql%3A%2F%2F%3Fsslmode%3Drequire"),
    ],
)  # fmt: skip
def test_parameters_where_the_url_has_some_already(template: str, expected: str) -> None:
    assert environment.render(template, "default", {"default": SOCKET}, Slot(), "X") == expected


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("{url}?connection_limit=5", "write {url:connection_limit=5}"),
        ("{jdbc}&prepareThreshold=0", "write {jdbc:prepareThreshold=0}"),
        ("{url:a=1}&b=2", "write {url:a=1&b=2}"),
        ("{analytics.url}?a={worker}", "write {analytics.url:a={worker}}"),
        ("{sqlalchemy}?", "write {sqlalchemy:name=value}"),
    ],
)
def test_parameters_behind_a_url_are_refused_whether_it_has_some_or_not(template: str, remedy: str) -> None:
    """`{url}?connection_limit=5` is right as long as nobody connects by a Unix socket, or with sslmode."""
    for dsns in (DSNS, dict.fromkeys(DSNS, SOCKET)):
        with pytest.raises(ConfigError, match="may have parameters already") as caught:
            environment.render(template, "default", dsns, Slot(), "X")
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{url:connection_limit}", "'connection_limit' is no parameter"),
        ("{url:?a=1}", "'?a=1' is no parameter"),
        ("{url:a=1&&b=2}", "'' is no parameter"),
        ("{url:=5}", "'=5' is no parameter"),
        ("{url:a=1&a=2}", "the parameter 'a' is given twice"),
        ("{url:a=50%}", "'50%' has a % that is none of a URL: write %25"),
        ("{url:a=%ff}", "'%ff' has a % that is none of a URL"),
        ("{url:a={nothing}}", "there is no placeholder 'nothing'"),
        ("{url:a={port:05d}}", "'port' takes no parameters"),
        ("{port:05d}", "'port' takes no parameters"),
        ("{url!r:a=1}", "takes no conversion"),
    ],
)
def test_parameters_that_are_none(template: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(template)
    assert told in str(caught.value)
    assert f"env.X = {template!r}" in str(caught.value)


def test_text_that_only_looks_like_parameters() -> None:
    assert render("really {database}? yes & no") == "really d 1? yes & no"
    assert render("{url} & {analytics.url} ?") == f"{DSNS['default'].url} & {DSNS['analytics'].url} ?"


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
