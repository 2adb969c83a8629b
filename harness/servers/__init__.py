"""One running PostgreSQL, whoever starts it.

The states of a server of ours. There is at most one of a checkout and purpose (``up``, ``run``; ``run-…`` and
``bake-…`` have one owner each)::

              acquire.ensure, .private
    (none) ─────────────────────────► WANTED    a ServerRequest, under the file lock of the purpose
                                        │
                                        │ Backend.start
                                        ▼
                        ┌────────── STARTING    a container or postmaster runs; it answers nobody, or not yet with
        died, or no     │               │       its id (handshake.wait)
        answer in time  │               │
                        │               │ answers with its id
                        │               ▼
                        │             READY     noted in a file, so that the next process need not search (records)
                        │               │  ▲
                        │ attach: the   │  │    the last session that holds the lock ends
                        │ right id, and │  │    (close, or the process is killed)
                        │ the lock      ▼  │
                        │              HELD     each user has a shared advisory lock: its sign of life; nobody
                        │               │       ends the server meanwhile
                        │               │
                        │               │ nobody holds it any more, for its TTL
                        │               ▼
                        │           ABANDONED   its own watcher (scripts/watch.sh) takes the lock alone, and ends it:
                        │               │       nothing of ours needs to be alive for that
                        │               │
                        ▼               ▼
    (gone) ◄─────────────────────── ENDED       data removed: Backend.stop, or the watcher

    `up` without a TTL is never abandoned. One that the machine or `docker stop` has STOPPED keeps its data, and goes
    from STOPPED to STARTING by the next `up`. It is ended by `down`, or by `gc` once its checkout is gone.

Who ends a server, besides its watcher: ``down`` (:func:`inventory.stop`), ``gc`` where its checkout is gone
(:func:`inventory.orphans`), the next run where other settings are wanted and nobody holds it (:mod:`acquire`, by
``handshake.claim_alone``), the owner of a worker's or a baker's server (``Server.stop``). A server of a person that
does not answer is never replaced: its data would be lost.

A server that is not ours (``ServerInfo.ours``) has none of these states: it is asked whether it lets us in.

Which file does what:

- ``port``: what a backend has to do. ``registry``: which backends there are, and which one it is here.
- ``acquire``: find or start. ``handle``: the server that was found. ``handshake``: right id? alive? ready? alone?
- ``records``: where it was seen last. ``inventory``: all that there are, those of deleted checkouts too. ``drift``: what
  decided a start, and has changed since.
- ``memory``: what is free, where data lies, how many servers fit. ``defaults``: the settings of throwaway servers.
- ``docker``, ``process``, ``external``: the backends. ``scripts``: what runs beside the server.
"""
