"""In CI: the GitHub Action's steps as a runner runs them; cache keys; a suite on several machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from fix_cli import Project
from fix_servers import enterable_folder

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Runner:
    """A GitHub runner's side of a job: its files, and what it makes of what the steps write to them."""

    folder: Path
    environ: dict[str, str]
    path: list[str] = field(default_factory=list)
    masked: set[str] = field(default_factory=set)
    log: str = ""

    def step(self, script: str, cwd: Path, environ: Mapping[str, str]) -> dict[str, str]:
        """Run one ``run:`` step with bash; return its outputs."""
        files = {name: self.folder / name for name in ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH")}
        for file in files.values():
            file.write_text("")
        whole = {
            **self.environ,
            **environ,
            **{name: str(file) for name, file in files.items()},
            "RUNNER_TEMP": str(self.folder),
            "PATH": os.pathsep.join([*self.path, self.environ["PATH"]]),
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=cwd, env=whole, capture_output=True, text=True, timeout=170, check=False,
        )  # fmt: skip
        self.masked |= set(re.findall(r"^::add-mask::(.*)$", done.stdout, re.MULTILINE))
        shown = re.sub(r"^::add-mask::.*\n", "", done.stdout, flags=re.MULTILINE) + done.stderr
        for secret in self.masked:
            shown = shown.replace(secret, "***")
        self.log += shown
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, script, done.stdout, done.stderr)
        self.environ |= parsed(files["GITHUB_ENV"].read_text())
        self.path[:0] = files["GITHUB_PATH"].read_text().split()
        return parsed(files["GITHUB_OUTPUT"].read_text())


def parsed(text: str) -> dict[str, str]:
    """What stands in one of the runner's files: ``NAME=VALUE``, or a delimiter for values of several lines."""
    found, lines = {}, iter(text.splitlines())
    for line in lines:
        if mark := re.fullmatch(r"([A-Za-z_]\w*)<<(\S+)", line):
            value = []
            for more in lines:
                if more == mark[2]:
                    break
                value.append(more)
            found[mark[1]] = "\n".join(value)
        else:
            name, equals, value_ = line.partition("=")
            assert equals, line
            found[name] = value_
    return found


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    return found


def act(runner: Runner, project: Path, **inputs: str) -> dict[str, str]:
    """Run the composite action; return its outputs."""
    definition = action()
    assert set(inputs) <= {name.replace("-", "_") for name in definition["inputs"]}
    values = {
        f"inputs.{name}": inputs.get(name.replace("-", "_"), given["default"])
        for name, given in definition["inputs"].items()
    }
    values["github.action_path"] = str(REPOSITORY)

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: values[match[1]], text)

    for step in definition["runs"]["steps"]:
        assert step["shell"] == "bash"
        environ = {name: filled(value) for name, value in step.get("env", {}).items()}
        # Nothing that a user wrote may stand in a script: it would be code.
        assert "${{" not in step["run"]
        cwd = project / filled(step.get("working-directory", "."))
        outputs = runner.step(step["run"], cwd, environ)
        values |= (
            {f"steps.{step['id']}.outputs.{name}": v for name, v in outputs.items()} if "id" in step else {}
        )
    return {name: filled(given["value"]) for name, given in definition["outputs"].items()}


@pytest.fixture
def runner(project: Project, tmp_path: Path) -> Iterator[Runner]:
    environ = {name: value for name, value in project.environ.items() if name != "PYTHONPATH"}
    yield Runner(tmp_path, environ)
    project.ok("serve", "--stop")


@pytest.fixture
def enterable() -> Iterator[Path]:
    with enterable_folder("ci") as folder:
        yield folder


def installed(runner: Runner) -> None:
    """The environment that pip would make, as far as these tests are concerned: this suite's own."""
    folder = runner.folder / "pg-harness" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "pg-harness"):
        (folder / name).write_text(f'#!/bin/sh\nexec "{Path(sys.executable).with_name(name)}" "$@"\n')
        (folder / name).chmod(0o755)


def test_the_action_hands_the_databases_to_the_following_steps(runner: Runner, project: Project) -> None:
    # Its first step makes an environment: test_installed.py installs the package from its files.
    fake = runner.folder / "python3"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    installed(runner)
    pip = runner.folder / "pg-harness" / "bin" / "pip"
    pip.write_text('#!/bin/sh\necho "$@" >>"$RUNNER_TEMP/pip"\n')
    pip.chmod(0o755)
    out = act(runner, project.root, workers="2", python=str(fake), extensions="pg_trgm\nbtree_gin\n")
    assert (runner.folder / "pip").read_text().split()[-1] == "pg-harness[embedded]"
    urls = json.loads(out["urls"])
    assert len(set(urls)) == 2
    assert out["url"] == urls[0]
    assert f":{out['port']}/" in urls[0]
    with psycopg.connect(urls[1]) as connection:
        found = connection.execute("select extname from pg_extension where extname ~ 'trgm|gin'").fetchall()
    assert sorted(found) == [("btree_gin",), ("pg_trgm",)]
    # The following steps.
    runner.step(
        'psql "$DATABASE_URL_2" -c "insert into users (name) values (1)"; pg-harness reset 2',
        project.root,
        {},
    )
    assert runner.step(
        'echo "rows=$(psql "$DATABASE_URL_2" -Atc "select count(*) from users")" >>"$GITHUB_OUTPUT"',
        project.root,
        {},
    ) == {"rows": "0"}
    # No step's log shows a password, or the token.
    password = psycopg.conninfo.conninfo_to_dict(urls[0])["password"]
    assert {str(password), runner.environ["PGHARNESS_CONTROL_TOKEN"]} <= runner.masked
    runner.step("env", project.root, {})
    assert str(password) not in runner.log
    assert "***" in runner.log


def test_the_action_fails_where_the_databases_cannot_be_had(runner: Runner, project: Project) -> None:
    installed(runner)
    serve = action()["runs"]["steps"][-1]
    environ = {"WORKERS": "1", "TTL": "1h", "INPUT_MIGRATIONS": "sql:nowhere", "ACTION_PATH": str(REPOSITORY)}
    with pytest.raises(subprocess.CalledProcessError) as failed:
        runner.step(serve["run"], project.root, environ)
    assert failed.value.returncode == 123
    assert "nowhere" in runner.log
    assert "Traceback" not in runner.log


def test_every_input_and_output_of_the_action_is_documented() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text()
    for name, given in action()["inputs"].items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row, name
        assert row[1].strip("` ") == given["default"] or given["default"] == "" or name == "migrations"
    for name in action()["outputs"]:
        assert f"`{name}`" in text


def test_foreign_actions_are_named_by_commit() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text()
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action_, remark in used:
        if not action_.startswith("OWNER/"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action_)
            assert re.fullmatch(r" # v[\d.]+", remark)


def test_the_documents_yaml_can_be_read() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        assert yaml.safe_load(block)


# --- cache keys --------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_what_is_migrated(project: Project) -> None:
    before = project.ok("fingerprint").strip()
    assert re.fullmatch("[0-9a-f]{24}", before)
    assert project.ok("fingerprint").strip() == before
    told = json.loads(project.ok("fingerprint", "--json"))
    assert told["key"] == before
    assert told["cache"] == project.environ["PGHARNESS_CACHE_DIR"]
    file = project.root / "db" / "migrations" / "002_more.sql"
    file.write_text("create table more ();")
    try:
        assert project.ok("fingerprint").strip() != before
    finally:
        file.unlink()
    assert project.ok("fingerprint").strip() == before
    assert project.ok("fingerprint", PGHARNESS_ROLE="other").strip() != before


def test_what_is_baked_is_found_by_it(project: Project, enterable: Path) -> None:
    # A cache of its own: servers of other tests would start from it.
    own = {"PGHARNESS_CACHE_DIR": str(enterable)}
    assert json.loads(project.ok("fingerprint", "--json", **own))["baked"] is None
    baked = project.ok("bake", **own).strip()
    assert json.loads(project.ok("fingerprint", "--json", **own))["baked"] == baked


# --- shards ------------------------------------------------------------------------------------------------

SHOW = 'echo "$PGHARNESS_SHARD of $PGHARNESS_SHARDS"'


def test_shards_are_counted_over_machines_and_copies(project: Project) -> None:
    out = project.ok("run", "--shards", "2/4", "--copies", "2", "--", "sh", "-c", SHOW)
    assert sorted(out.splitlines()) == ["[1] 3 of 8", "[2] 4 of 8"]
    assert project.ok("run", "--shards", "2/4", "--", "sh", "-c", SHOW) == "2 of 4\n"
    assert sorted(project.ok("run", "--copies", "2", "--", "sh", "-c", SHOW).split()) == sorted(
        ["[1]", "1", "of", "2", "[2]", "2", "of", "2"]
    )
    assert project.ok("run", "--", "sh", "-c", SHOW, PGHARNESS_SHARD="7", PGHARNESS_SHARDS="8") == " of \n"


@pytest.mark.parametrize("word", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shards_that_are_none_are_refused(project: Project, word: str) -> None:
    assert "K/N" in project.fails(120, "run", f"--shards={word}", "--", "true")
