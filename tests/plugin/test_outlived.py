"""Sessions of an ORM that outlive tests: what a suite says of them, and the ways out that docs/fails-with-resets.md names."""

from __future__ import annotations

import re

import pytest
from fix_plugin import Folder
from fix_snippets import DOCS

SHOP = """
    import os
    from sqlalchemy import create_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

    engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
    Session = scoped_session(sessionmaker(engine))

    class Base(DeclarativeBase): pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
"""

STORY = """
    from shop import Session, User

    HELD = []

    def test_ada():
        HELD.append(User(name="ada")); Session.add(HELD[0]); Session.commit()

    def test_ada_is_renamed():
        HELD[0].name = "countess"; Session.commit()
"""

ALONE = """
    import pytest
    from shop import Session, User

    HELD = []

    @pytest.mark.parametrize("i", range(3))
    def test_ada_is_number_1(i):
        for known in list(Session.identity_map.values()):
            known.name = "known"
        HELD.append(User(name="ada")); Session.add(HELD[-1]); Session.commit()
        assert HELD[-1].id == 1
        assert Session.query(User).count() == 1
"""


def snippet(name: str) -> str:
    """The block of the page that is this file."""
    (found,) = re.findall(
        rf"```python\n# {re.escape(name)}\n(.*?)```", (DOCS / "fails-with-resets.md").read_text(), re.DOTALL
    )
    return str(found)


@pytest.fixture
def shop(folder: Folder) -> Folder:
    pytest.importorskip("sqlalchemy")
    return folder.write(shop=SHOP)


def test_the_summary_says_what_it_may_be_and_both_remedies(shop: Folder) -> None:
    shop.write(test_a=STORY)
    result = shop.pytest(env={"PGHARNESS_RESET_TIMEOUT": "1s"})
    assert (result["passed"], result["failed"]) == (1, 1), result.text
    (line,) = [line for line in result.text.splitlines() if "lives on from test to test" in line]
    assert line.startswith("test_a.py::test_ada_is_renamed failed with ")
    assert "Session.remove()" in line
    assert 'fresh="none"' in line


def test_a_session_that_ends_after_each_test(shop: Folder) -> None:
    shop.write(test_a=ALONE)
    assert shop.pytest(env={"PGHARNESS_RESET_TIMEOUT": "1s"})["failed"] > 0
    shop.write(conftest=snippet("conftest.py"))
    result = shop.pytest().ok(3)
    assert "lives on" not in result.text
    assert "left a session behind" not in result.text


def test_a_story_shares_its_rows(shop: Folder) -> None:
    shop.write(
        test_story=snippet("test_story.py") + "\n" + "\n".join(line[4:] for line in STORY.splitlines())
    )
    shop.pytest().ok(2)


def test_other_failures_are_not_blamed(shop: Folder) -> None:
    shop.write(
        test_a="class StaleData(Exception): pass\ndef test_it(): raise StaleData('x')\ndef test_two(): assert 0\n"
    )
    assert "lives on" not in shop.pytest().text
