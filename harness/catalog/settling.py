"""Sequences that write to the log when they next move, so that a reset sees it."""

from __future__ import annotations

from harness.catalog.session import Session
from harness.errors import ServerRefused


def settle_sequences(inside: Session) -> bool:
    """Have every sequence write to the log when it next moves; whether that could be done.

    nextval logs 32 values ahead, and the next 31 moves are silent: a reset could not see them in a clone. Not for a
    database that somebody uses: a value that was taken in between would be given out again.
    """
    try:
        inside.execute(_SETTLE)
    except ServerRefused:
        # Not our server, and a sequence of somebody else's role: each lease settles its own then.
        return False
    return True


_SETTLE = """
do $settle$
declare
    sequence regclass;
    now record;
begin
    for sequence in select oid::regclass from pg_class where relkind = 'S' and relpersistence <> 't' loop
        execute format('select last_value, is_called, log_cnt from %s', sequence) into now;
        if now.log_cnt > 0 then
            perform setval(sequence, now.last_value, now.is_called);
        end if;
    end loop;
end $settle$
"""
