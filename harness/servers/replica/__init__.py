"""Streaming standbys of a server (setting ``replicas``): to read from, as an application does in production.

::

    application ──► primary ──── its log ────► standby ◄── application      ``lease.url``, ``lease.replica.url``
                       ▲                          ▲
                    harness: migrations,       harness: has it replayed the reset?
                    resets, clones             whose transaction is in its way?

- ``standbys``: has them started: a copy of the server's data, made while it runs, in the server's own folder or container
  (``servers/process/standbys.py``, ``servers/docker/standbys.py``, ``scripts/standby.sh``), which goes on by streaming.
- ``following``: of one lease: waits until they have replayed what its databases' primary has written.

A standby ends with its server, whoever ends that; nothing else is noted of it than the server's own record. There is no replication
slot: one that was killed would hold back the primary's log for ever (docs/decisions/0092-a-standby-beside-its-server.md).
"""
