"""Log-ins where somebody else has taken the port of a server of ours: he is never told a password."""

from __future__ import annotations

import pytest
from fix_impostor import Impostor

from harness.dsn import Dsn
from harness.errors import ServerLost
from harness.postgres import session as session_
from harness.postgres.session import Session, greet, open_application
from harness.servers.port import ServerInfo

needs_scram = pytest.mark.skipif(not session_.asks_for_scram(), reason="libpq is older than 16")


def dsn_of(impostor: Impostor) -> Dsn:
    return Dsn("127.0.0.1", impostor.port, "postgres", "the-password", "postgres")


@needs_scram
@pytest.mark.parametrize("how", ["password", "md5", "trust"])
def test_of_a_server_of_ours_nobody_is_told_the_password(how: str) -> None:
    with Impostor(how) as impostor:
        dsn = dsn_of(impostor)
        info = ServerInfo(dsn, "the-id", "process", "run", "disk", "/nowhere")
        with pytest.raises(ServerLost, match="scram-sha-256"):
            greet(dsn, "the-id")
        # Nor by whoever has its address from us, of another database or as the application.
        with pytest.raises(ServerLost, match="scram-sha-256"):
            Session.connect(info.dsn.with_database("other"))
        with pytest.raises(ServerLost, match="scram-sha-256"):
            open_application(info.dsn.with_user("app", "the-password"))
    assert impostor.asked == 3
    assert impostor.told == []


@pytest.mark.parametrize("how", ["password", "md5"])
def test_somebody_elses_server_may_ask_as_it_likes(how: str) -> None:
    with Impostor(how) as impostor:
        info = ServerInfo(dsn_of(impostor), "", "external", "run", "unknown", "")
        with pytest.raises(ServerLost):
            Session.connect(info.dsn)
    (told,) = impostor.told
    assert told == "the-password" if how == "password" else told.startswith("md5")
