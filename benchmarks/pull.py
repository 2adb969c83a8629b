"""A migrated server pulled from a registry, against migrating and baking it here.

    python benchmarks/pull.py [--image pgharness-test:17] [--pairs 5] [--registry 127.0.0.1:5000]

Either side begins as a CI machine does that has the base image and nothing else of ours, and ends with the first lease of a server of its own. Without
``--registry`` Debian's ``docker-registry`` is started on loopback: what a network adds is not in the figures, and the size of what comes is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import schema
from measure import compare, head, timed

from harness.bench.project import environ_of
from harness.config.load import load
from harness.config.project import Project
from harness.runs import bake
from harness.runs.run import Run
from harness.servers import registry

REAL = """\
SECRET_KEY = "x"
INSTALLED_APPS = [
    "wagtail.contrib.forms", "wagtail.contrib.redirects", "wagtail.embeds", "wagtail.sites", "wagtail.users",
    "wagtail.snippets", "wagtail.documents", "wagtail.images", "wagtail.search", "wagtail.admin", "wagtail",
    "modelcluster", "taggit", "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
    "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles", "django.contrib.postgres",
]
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
WAGTAIL_SITE_NAME, WAGTAILADMIN_BASE_URL = "x", "http://localhost"
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "production"}}
"""


@contextmanager
def registry_on_loopback() -> Iterator[str]:
    """A registry with a folder of its own; its address."""
    folder = Path(tempfile.mkdtemp(prefix="bench-registry-"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: {address}}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                # Our own process.
                urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def wagtail_project() -> Iterator[tuple[Path, dict[str, str]]]:
    """Wagtail's own migrations, some 200, by Django."""
    folder = Path(tempfile.mkdtemp(prefix="pg-harness-bench-"))
    folder.chmod(0o755)
    (folder / "real_settings.py").write_text(REAL)
    (folder / "pg-harness.toml").write_text(
        'migrations = ["django:real_settings"]\nmigration_timeout = "10m"\n'
    )
    try:
        yield folder, environ_of(folder) | {"PGHARNESS_CACHE_DIR": str(folder / "cache")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Machine:
    """One that has the base image, and nothing else of ours.

    Args:
        repository: where it looks first; empty: nowhere.
    """

    def __init__(self, folder: Path, environ: dict[str, str], image: str, repository: str) -> None:
        named = {"PGHARNESS_BAKED_REPOSITORY": repository} if repository else {}
        self._environ = environ | named
        self._given: dict[str, Any] = {"isolation": "server", "backend": "docker", "image": image}
        self._folder = folder
        self._repository = repository

    @property
    def baker(self) -> bake.Baker:
        """Of this project."""
        project = Project.of(load(self._environ, start=self._folder, overrides=self._given), self._environ)
        return bake.Baker(project, registry.choose(project))

    def forget(self) -> None:
        """Remove what is baked of these migrations."""
        store = self.baker.store
        key, _ = self.baker.key()
        for snapshot in store.list():
            if snapshot.key == key and not store.remove(snapshot):
                raise SystemExit(f"{snapshot.name} is still in use")

    def first_lease(self) -> float:
        """Seconds from nothing to the first lease."""
        self.forget()

        def act() -> None:
            with (
                Run.open(root=self._folder, environ=self._environ, **self._given) as run,
                run.lease().connect() as connection,
            ):
                connection.execute("select 1")

        return timed(act)

    def had(self) -> float:
        """Seconds until the baked image is there, without a server of a worker's."""
        self.forget()

        def act() -> None:
            baked = self.baker.ensure()
            if baked.fetched != bool(self._repository):
                raise SystemExit("it did not come from where it was to come from")

        return timed(act)


def size(repository: str, key: str, image: str) -> str:
    """What comes beyond the base image, as the registry keeps it, and what of that is in the base image."""
    address, _, name = repository.partition("/")
    request = urllib.request.Request(
        f"http://{address}/v2/{name}/manifests/{key}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        layers = [layer["size"] for layer in json.load(answer)["layers"]]
    return f"{layers[-1] / 1e6:.1f} MB come, {sum(layers[:-1]) / 1e6:.0f} MB of {image} are there"


def side_by_side(
    name: str,
    project: Callable[[], AbstractContextManager[tuple[Path, dict[str, str]]]],
    where: str,
    image: str,
    pairs: int,
) -> None:
    """One project, both ways."""
    repository = f"{where}/{name}"
    with project() as (folder, environ):
        pulling = Machine(folder, environ, image, repository)
        migrating = Machine(folder, environ, image, "")
        baked = migrating.baker.ensure()
        pulling.baker.push(baked, replace=False)
        head(f"{name}: a machine with nothing but {image} ({size(repository, baked.snapshot.key, image)})")
        compare("pulled, against migrated and baked", pulling.had, migrating.had, pairs=pairs, aim=1.0)
        compare("until the first lease", pulling.first_lease, migrating.first_lease, pairs=pairs, aim=1.0)
        migrating.forget()


def main() -> None:
    """Print the tables."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--image", default="pgharness-test:17")
    words.add_argument("--pairs", type=int, default=5)
    words.add_argument("--registry", help="an address to use instead of a registry on loopback")
    given = words.parse_args()
    with nullcontext(given.registry) if given.registry else registry_on_loopback() as where:
        side_by_side("60-tables", schema.project, where, given.image, given.pairs)
        if importlib.util.find_spec("wagtail") is None:
            print(
                "\nwagtail is not installed (tests/requirements-real.txt): only the 60 tables were measured"
            )
            return
        side_by_side("wagtail", wagtail_project, where, given.image, given.pairs)


if __name__ == "__main__":
    main()
