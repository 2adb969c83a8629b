"""How sequences are put back."""

from __future__ import annotations

from harness.reset.sql.relations import Relation, SequenceState

MOST_SETVALS = 200
"""How many sequences one statement puts back; a row of PostgreSQL's has at most 1,664 columns."""


def setval(oid: int, state: SequenceState) -> str:
    """The call that puts a sequence back."""
    return f"setval('{oid}'::regclass, {state.last_value}, {str(state.is_called).lower()})"


def sequence_statements(relation: Relation, state: SequenceState) -> list[str]:
    """Put a sequence back whose values sessions keep: only a new file makes them forget."""
    return [
        f"alter sequence {relation.sql} restart with {state.last_value}",
        f"select {setval(relation.oid, state)}",
        f"select {relation.oid}, pg_relation_filenode({relation.oid})",
    ]
