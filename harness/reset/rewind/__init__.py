"""Rewind: the reset by pages, done by a module in the server's own process.

- ``module``: have the module ready on a server, or say why it cannot be.
- ``fit``: which compiled module fits a server. ``functions``: its functions, in a schema of the maintenance database.
- ``selftest``: write, rewind, compare, once for each server.
- ``modules``: what ``scripts/build-native`` compiles; part of the wheel, not of the repository.
"""
