"""Rewind: the reset by pages, done by a module in the server's own process. docs/rewind.md explains it.

How the module comes there:

- ``module``: have it ready on a server, or say why it cannot be.
- ``fit``: which compiled module fits a server; ``elf``: whether a file is one, and a whole one.
- ``functions``: its functions, in a schema of the maintenance database.
- ``leftovers``: what earlier versions and killed processes have left.
- ``selftest``: write, rewind, compare, once for each server.
- ``build``: compile it. ``modules``: what ``scripts/build-native`` compiled; part of the wheel, not of the repository.

How it is used:

- ``pages``: the way by pages through one reset, and marks of pages. ``rewinder``: one call is one reset.
- ``answer``: what the call says; ``facts``: what it has to know; ``page_marks``: the files of marks.
"""
