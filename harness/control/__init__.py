"""The control interface of a living run: what any program, in any language, asks of its databases over HTTP.

::

    runner's worker ──POST /v1/reset/2──▶ server.py ──▶ api.py ──▶ leases.py ──▶ Lease.reset
      (any language)    loopback, token    waitress     routes,      who holds       over a link of
                                           behind one   tokens,      which, one      the lease's own
                                           door         problems     lock a lease

The socket is bound before the command starts, and nothing else: the HTTP library is imported when the first client connects.
:mod:`harness.control.client` is the other side, for our own verbs inside a run. :mod:`harness.control.openapi` describes it all.
"""
