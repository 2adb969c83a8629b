"""Programs that run in the project's interpreter, by file path; they import nothing of ``harness``.

A project may have a package ``harness`` of its own, and its Python may be older than ours.
"""
