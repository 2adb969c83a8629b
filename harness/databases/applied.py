"""What of the migrations a database holds: noted in its label, for those that come later to be told from those.

Not in the database itself: a table of ours there would be seen by tests, by schema diffs, and by tools that want an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from harness.databases.spec import TemplateSpec
from harness.migrations.port import Stepwise, short

_SOURCE = "source"
_STEP = "step"


@dataclass(frozen=True)
class Applied:
    """What was applied; the seeds are not among it.

    Attributes:
        sources: text of each source whose tool knows by itself what it applied → its fingerprint.
        steps: name of each step of the other sources → its hash.
    """

    sources: Mapping[str, str]
    steps: Mapping[str, str]

    @classmethod
    def of(cls, spec: TemplateSpec) -> Self:
        """All that a spec applies.

        Raises:
            MigrationError: a source cannot be read.
        """
        sources: dict[str, str] = {}
        steps: dict[str, str] = {}
        for source in spec.schema:
            if isinstance(source, Stepwise):
                steps |= source.steps()
            else:
                sources[source.text] = short(source.fingerprint())
        return cls(sources, steps)

    @classmethod
    def read(cls, lines: Iterable[str] | None) -> Self | None:
        """Of a label; None where an earlier version wrote that, and noted nothing."""
        if lines is None:
            return None
        found: dict[str, dict[str, str]] = {_SOURCE: {}, _STEP: {}}
        for line in lines:
            kind, _, rest = line.partition(" ")
            hashed, _, name = rest.partition(" ")
            found.get(kind, {})[name] = hashed
        return cls(found[_SOURCE], found[_STEP])

    def written(self) -> tuple[str, ...]:
        """As a label has it."""
        return (
            *(f"{_SOURCE} {hashed} {text}" for text, hashed in self.sources.items()),
            *(f"{_STEP} {hashed} {name}" for name, hashed in self.steps.items()),
        )
