"""Reset: a leased database back to its baseline, connections kept.

This is the map. ``docs/reset.md`` tells what is promised, decisions 0031 to 0039 and 0041 to 0043 tell why it is done so.

Two engines. Where the server has our module (:mod:`harness.reset.rewind`, docs/rewind.md), each turn of a reset tries *pages*
first, in one round trip of the reader; whatever is in the way of that is left to the *rows*, which everything below is about.

The sessions
============
::

    reader     ours, in the maintenance database: reads the log, asks who is busy, ends sessions
    restorer   ours, in the leased database: locks, deletes, inserts, commits, vacuums
    baseline   ours, in the baseline, a clone of the template that nobody else enters: how rows were
    others     the application's, in the leased database, whom a reset waits for; and everybody else on the server

Pages first
===========
::

      reader       one call: look, lock, copy pages from the baseline's, tell all sessions
        nothing    nobody wrote ................................................................ done
        rewound    the lease is a copy of the baseline again: start = upto, own = [xid], nothing is touched, moved, pending
                     the server's own catalogs were written: settings and pg_shdepend are put back by rows
                     a sequence with CACHE moved: a new file for it (pending) ............. by rows, this turn
                     a new advisory lock is held ........................................... by rows, this turn
                     else ................................................................ done
        busy, locked, temporary, rows
                   nothing was changed ................................................... by rows, this turn
                     that waits, names, ends, or puts rows back; its next turn tries pages again
                     it wants a clone, and somebody was in the way of the pages: he is waited for and ended, alone
        an error   before any page: off, with the reason. Else: a clone

    clean          where the pages last equalled the baseline's, byte by byte: a clone, or a rewind, nothing else
    rewinds        ids of the rewinds since. Rows that were put back by rows lie elsewhere than in the baseline: for a rewind
                   our own records of that are as dirty as a test's, so it reads from ``clean``, not from ``start``

Not tried while tables are locked for a writer who goes on (contended), nor above marks of rows.

One reset by rows, from above to below
======================================
In brackets the stages that the engine tells a test (``locked``, and the first ``before-commit``, only where rows have to be
looked at before it is known what to do); the words at the left say which session works.
::

              rebase / last reset                the database is pristine, ``start`` is where the log ended
                   :  a test writes
                   v
      .------> [before-look]                     nothing is locked
      |  reader    |  one round trip: flush a message of ours, read the log from ``start`` to that message, ``stop``;
      |            |  where the end of the log is still at ``seen``, nobody wrote on the whole server, and nothing is read
      |        [looked]
      |            |  a transaction of the window is open, a statement runs, an advisory lock is held:
      |            |  wait, at last end the session  ......................................... again (A)
      |            |  not moved: done. Nothing is known to differ
      |            |  too much log to read: a clone
      |  all three |  resolve: file numbers to tables, catalogs, sequences; with what is pending
      |            |  plan: Reclone (a clone), Nothing (someone may yet write? wait, again (A); else done), Restore
      |            |  Restore: compare the catalogs that were written with the baseline's; another schema is a clone
      |            |
      |        [before-lock]
      |  restorer  |  BEGIN, lock the dirty tables, ask for the insert position           first transaction
      |        [locked]                          writers wait from here on
      |            |  delete what is too much
      |            |  nothing is missing:   [before-commit] sequences, COMMIT              --> [committed]
      |            |  rows are missing:     COMMIT, and the locks are gone
      |            |
      |        [before-vacuum]                   VACUUM is no part of a transaction: here nobody is locked out
      |            |  VACUUM the tables that miss rows: their places are free again
      |        [before-commit]
      |            |  BEGIN, lock them again, insert in the order of place, sequences, COMMIT     second transaction
      |            |  rows that came to lie elsewhere: delete all of that table, COMMIT, VACUUM, insert, at last TRUNCATE
      |            |
      |        [committed]
      |  reader    |  the end of the log had moved before the locks, or somebody had a transaction id between ours:
      |            |  read on, from ``stop`` to where our last locks began. Ours meant to write more than we did: a clone.
      |            |  Somebody else wrote to this database ...................................... again, contended (B)
      |            |  who still sees, or may write into, what was before? wait, at last end him .. again (A)
      |  restorer  |  VACUUM what dead rows would disturb (housekeeping: a refusal is passed over)
      |            v
      |          done: ``start`` is where the reading ended, ``own`` the ids of our transactions
      |
      '---- again: (A) as before   (B) with locks first: what was put back stays put back, and counts as pristine

Contended (B): the dirty tables are locked *before* the look, and all is done in that one open transaction: rows are written again
in their order, and their old places are freed by a later VACUUM. So an application that keeps writing cannot starve a
reset. Where the look then finds another table, the locks are let go and taken anew with that one too.

Windows
=======
::

    log  ----|=========================|------|--------------|------------>
           start                      stop   position      until
             '------- first look ------'      |              |
                    everything is read        |              |
                                      '------ second look ---'   only where it is needed

    start      where the reading of the last reset ended, exactly: the next window begins at its ``stop``
    stop       our flushed message: a record that comes later is for the next window
    seen       the insert position right after that message; "has not moved" is measured against it. Empty after a
               reset that wrote: its own transactions have moved the log
    position   the insert position when our first locks were held. Equal to ``seen``: nobody can have written in between
    until      the same of our last locks (lockless: after the COMMIT): what comes later is for the next window
    own        ids of our transactions: their records are known among the others' and change nothing, but for the blocks
               of catalogs that they touched, which every later comparison has to know

Locks, and who waits for whom
=============================
::

    which                       whose     from .. to                      keeps out          whoever is in the way
    SHARE ROW EXCLUSIVE, each   restorer  BEGIN .. COMMIT, of each        writers, DDL       250 ms at a time, waited
    dirty table, in OID order             transaction; contended: from                       for until the deadline, then ended;
                                          before the look                                    idle and without a write: lockless
    ACCESS EXCLUSIVE, tables    restorer  first transaction               all                not waited for: DELETE in place
    to truncate                                                                              of TRUNCATE, next attempt
    of VACUUM                   restorer  the VACUUM                      DDL, VACUUM        skipped (SKIP_LOCKED)
    advisory locks              others    whatever was held when it       nobody             0.2 s, then ended
                                          began stays
    prepared transactions       others                                                       rolled back

A reset waits for others: those who wrote and have not ended, run a statement, hold a lock, or have a snapshot of before.
Its patience is one deadline for all of it (``reset_timeout``); whoever is there past it is named in the report and ended.
Others wait for a reset only while it holds locks. Two resets cannot deadlock: locks are taken in OID order, and a wait of ours
ends (250 ms) before PostgreSQL looks for deadlocks (1 s).

When something fails
====================
::

    a lock is not to be had            roll back; see above; again
    a row violates a constraint        where no lock kept others out, it may be somebody's: again, twice; else a clone
    between the two transactions       what the first did was committed, and is remembered (``Outcome``, Tracker.adopt_refused):
                                       tables that miss rows are pending, the next attempt or a clone completes them
    longer than was reckoned           roll back, and a clone
    the log was recycled, unreadable   a clone; the reason says what would have kept it
    a session of ours is lost          all of ours are closed; a clone
    anything else, Ctrl-C too          the state is not known from then on: a clone, before anything passes for pristine
    setval                             is not rolled back with an attempt: hence last of all, when no lock can fail any more

A clone is made by the caller (:mod:`harness.databases.resetting`): :class:`harness.reset.changes.RecloneNeeded` asks for it, and
``rebase`` begins anew, with the rows of the marks put back into it.

Where what is
=============
::

    engine.py       the order of it all: reset, changes, mark; decides when it is a clone
    tracker.py      what is known of the database since it was pristine; reads and compares
    connections.py  our three sessions
    contention.py   what one reset has met of others: contended, locked, lockless
    sessions.py     the application's sessions in the way: waited for, named, ended
    plan.py         from changes to Nothing, Restore, Reclone: a pure function
    restore.py      one attempt: the transactions above, and the VACUUM between
    outcome.py      on which terms an attempt is made, and what it has done
    vacuum.py       dead rows, and when they are worth a VACUUM
    baseline.py     the pristine rows and facts
    changes.py      the values: Changes, TableChange, Plan, RecloneNeeded
    detect.py       from records of the log to changes: pure functions
    marks.py        the stack of marks; marking.py copies what one holds
    watermark.py    the value with which another process goes on
    report.py       what a reset says that it did
    rewind/         pages: rewinder.py asks the server's module; the rest brings it there
    wal/            reading the log: bytes (files or SQL) first, pg_walinspect else
    sql/            statements: batches, relations, rows, sequences, catalogs, shared catalogs, who owns what

Imports go from engine down to the values, and nowhere back.
"""
