"""The second step of the GitHub Action: serve the databases, mask their passwords, hand the variables to the following steps.

Standard library only. What it reads: WORKERS, TTL and INPUT_* (see action.yml); what it writes: ``GITHUB_ENV`` and ``GITHUB_OUTPUT``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SETTINGS = {
    "INPUT_IMAGE": "PGHARNESS_IMAGE",
    "INPUT_VERSION": "PGHARNESS_PG_VERSION",
    "INPUT_MIGRATIONS": "PGHARNESS_MIGRATIONS",
    "INPUT_EXTENSIONS": "PGHARNESS_EXTENSIONS",
}
"""Input → the variable of the settings; an input that is empty decides nothing."""


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that the inputs decide, as variables."""
    found = {}
    for given, variable in SETTINGS.items():
        lines = [line.strip() for line in environ.get(given, "").splitlines() if line.strip()]
        if lines:
            found[variable] = ",".join(lines)
    return found


def serve(environ: Mapping[str, str]) -> dict[str, str]:
    """Start serving; return the variables."""
    words = ["serve", "--detach", "--format", "json", "-n", environ["WORKERS"], "--ttl", environ["TTL"]]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        env={**environ, **settings(environ)},
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        # Its own lines, which say why, have gone to the job's log.
        print(f"::error title=pg-harness::the databases cannot be served (exit code {done.returncode})")
        sys.exit(done.returncode)
    return dict(json.loads(done.stdout))


def secrets(variables: Mapping[str, str]) -> list[str]:
    """What must not be shown in the job's log."""
    return sorted({value for name, value in variables.items() if "PASSWORD" in name or "TOKEN" in name})


def append(path: str, values: Mapping[str, str]) -> None:
    """Add to one of the runner's files. Its documentation, "Multiline strings": a delimiter that is no line of the value."""
    with Path(path).open("a", encoding="utf-8") as file:
        for name, value in values.items():
            end = "PGHARNESS_END"
            while end in value:
                end += "_"
            file.write(f"{name}<<{end}\n{value}\n{end}\n")


def main() -> None:
    """All of it."""
    variables = serve(os.environ)
    for secret in secrets(variables):
        print(f"::add-mask::{secret}", flush=True)
    append(os.environ["GITHUB_ENV"], variables)
    workers = int(variables["PGHARNESS_WORKERS"])
    urls = [variables[f"DATABASE_URL_{number}"] for number in range(1, workers + 1)]
    append(
        os.environ["GITHUB_OUTPUT"],
        {"url": urls[0], "urls": json.dumps(urls), "port": variables["PGPORT"]},
    )


if __name__ == "__main__":
    main()
