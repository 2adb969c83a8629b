"""Find Django projects."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.migrations.detect import Finding, Tree


def detect(tree: Tree) -> Iterator[Finding]:
    """The project whose manage.py is nearest to the root, or the settings that pyproject.toml names."""
    managers = [p for p in tree.files if p.name == "manage.py" and "DJANGO_SETTINGS_MODULE" in tree.head(p)]
    # Deeper ones belong to somebody else's project inside this one: `django` would not find them.
    managers = [p for p in managers if len(p.relative_to(tree.root).parts) <= 3]
    managers.sort(key=lambda path: len(path.parts))
    if managers:
        first = managers[0]
        remarks = tuple(f"another Django project: {tree.shown(p)}" for p in managers[1:])
        match = re.search(r"""DJANGO_SETTINGS_MODULE['"]\s*,\s*['"]([\w.]+)['"]""", tree.head(first))
        module = match.group(1) if match else ""
        # manage.py below the root: its folder goes on the path by itself, see migrations/tools/django.py.
        yield Finding(
            "Django",
            "django",
            tree.shown(first) + (f" (settings: {module})" if module else ""),
            3,
            remarks,
        )
        return
    for names in (("tool", "pytest", "ini_options"), ("tool", "pytest"), ("tool", "django")):
        module = tree.pyproject(*names).get("DJANGO_SETTINGS_MODULE")
        if isinstance(module, str):
            yield Finding("Django", f"django:{module}", f"[{'.'.join(names)}] names the settings {module}", 3)
            return
