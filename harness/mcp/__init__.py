"""What an agent is given by ``pg-harness mcp``: databases of its own, by the Model Context Protocol.

::

    client ──stdio──> serve      protocol, signals, the end of the session
                        │
                      tools      one method, one tool: words in, text and structured content out
                        │
                      databases  which database a word may mean: own ones, and those that `--allow` opens
                        │
                      sandbox    the same forks, marks and resets that people have

Own databases lie on a server of their own (purpose ``mcp``), where nothing of a person's and of test runs is, each
with a role of its own that may enter it alone. They are called ``agent-<session>/<name>``, and end with their session.
"""
