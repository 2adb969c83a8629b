"""Makes the helpers of this folder and the scratch servers importable."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE.parent):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from fix_reset_servers import reset_server  # noqa: E402, F401
