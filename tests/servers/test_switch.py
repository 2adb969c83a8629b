"""The dead-man's switch: one that was killed is started again by whoever meets the server."""

from __future__ import annotations

from fix_backends import Checkout, until
from fix_switch import kill_switch

from harness.servers.handshake import watched


def test_a_dead_switch_is_started_again(place: Checkout, kind: dict[str, str]) -> None:
    settings = place.settings(**kind, ttl=2)
    with place.ensure(settings) as found:
        until(lambda: watched(found.session), seconds=20, what="the switch to look at the server")
        kill_switch(found.info)
        # Its session ends without its client: a loop that cannot end the server is no switch.
        until(lambda: not watched(found.session), seconds=20, what="the switch's session to end")
        assert not found.guarded
        with place.ensure(settings) as again:
            assert not again.started
            assert again.guarded
            until(lambda: watched(again.session), seconds=20, what="the switch to look again")
            # And once: who comes next finds it.
            again.guard()
    assert sum("is started again" in line for line in place.told) == 1
    until(lambda: again.backend.list(place.project) == [], seconds=40, what="the server to end itself")
