"""A pgbouncer in front of a server (setting ``pooler``): one for each server, for all that use it.

::

    application ──► pgbouncer ──► server         what a lease's URL names
                        ▲            ▲
                    keeper ──────────┘           holds a session there, and ends with it
                        ▲
    harness ── console ─┘                        RECONNECT at a reset, PAUSE while a database is replaced
    harness ─────────────────────────► server    migrations, resets, clones; ``lease.direct``

- ``pgbouncer``: its program, its version, its files. Pure but for asking the program.
- ``front``: found by what is noted of it, or started; whom it lets in; its console.
- ``keeper``: a process of its own, the parent of pgbouncer. It ends it when the server ends.
"""
