"""Every wait has a limit: nothing in the package asks Docker, PostgreSQL, a process or a lock without one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import harness

PACKAGE = Path(harness.__file__).parent

UNLIMITED = {
    "cli/run/child.py: subprocess.Popen": "the user's own command: it takes as long as it takes",
    "cli/run/child.py: children.wait": "its end, or a signal",
    "cli/run/copies.py: children.wait": "likewise",
    "cli/run/reaper.py: subprocess.Popen": "it ends with the command whose descendants it ends, or with us",
    "cli/run/reaper_process.py: os.waitpid": "of one that has ended (WNOHANG), or that ends because it could not be started",
    "cli/serve.py: os.waitpid": "it has closed its pipe: it is ending",
    "control/integresql.py: found.settled.wait": "its client is done: a freeze, whose every statement has a limit",
    "databases/clones.py: future.result": "acts whose every statement has a limit",
    "databases/pool.py: self._condition.wait_for": "a thread that waits for work, and holds nobody up",
    "postgres/liveness.py: select.select": "a thread that waits for the loss of its session",
    "migrations/dump/load.py: subprocess.Popen": "waited for with a limit, and killed",
    "migrations/tools/child.py: subprocess.Popen": "waited for with a limit, and its group killed",
    "servers/process/user.py: subprocess.Popen": "waited for with a limit, and its group killed",
    "servers/process/user.py: fcntl.flock": "without waiting",
    "servers/pooler/front.py: fcntl.flock": "the keeper tries it without waiting, and lets go at once",
    "servers/pooler/front.py: subprocess.Popen": "a keeper: it says within START seconds that it is ready, or why not, and outlives us",
    "servers/pooler/front.py: process.wait": "it was killed",
    "servers/pooler/keeper.py: fcntl.flock": "without waiting",
    "servers/pooler/keeper.py: subprocess.Popen": "the pooler: it is kept for as long as its server lives",
    "servers/pooler/keeper.py: child.wait": "it was killed",
    "servers/pooler/keeper.py: self._child.wait": "it was killed",
    "servers/swarm/backend.py: placing.wait": "until the request's start_timeout",
    "bench/crowd.py: subprocess.Popen": "killed by a timer",
    "bench/crowd.py: worker.communicate": "killed by a timer",
    "bench/crowd.py: worker.wait": "it was killed",
}
"""Calls that may go on, by file and name, and why."""

DOORS = {
    "psycopg.connect": ["postgres/session.py"],
    "Connection.connect": ["postgres/session.py"],
    "docker_client.DockerClient": ["servers/docker/daemon.py"],
    "docker.DockerClient": ["servers/docker/over_ssh.py"],
    "FileLock": ["config/project.py"],
}
"""Whoever connects or locks is named here, because the limit is stated there."""

WAITS_FOR_LOCKS = {
    "postgres/locks.py": "each with a lock_timeout of its own",
    "pytest_plugin/serial.py": "likewise",
    "bench/rows.py": "a benchmark of just that wait",
}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """File, call, and what is called as it is written."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), node, ast.unparse(node.func)


def is_unlimited(call: ast.Call, name: str) -> bool:
    last = name.rpartition(".")[2]
    limited = any(keyword.arg == "timeout" for keyword in call.keywords)
    if name.startswith("subprocess."):
        return last in ("run", "call", "check_call", "check_output", "Popen") and not limited
    if last in ("wait", "join", "communicate", "result", "acquire", "accept"):
        # With an argument it is a limit, or text that is joined.
        return not limited and not call.args
    if last in ("wait_for", "create_connection"):
        return not limited and len(call.args) < 2
    if name == "select.select":
        return len(call.args) < 4
    return name in (
        "fcntl.flock",
        "fcntl.lockf",
        "os.waitpid",
        "os.wait",
        "urlopen",
        "urllib.request.urlopen",
    )


def test_no_wait_is_without_a_limit() -> None:
    found = {f"{file}: {name}" for file, call, name in calls() if is_unlimited(call, name)}
    assert found == set(UNLIMITED)


def test_there_is_one_door_to_each_that_states_the_limit() -> None:
    found: dict[str, list[str]] = {}
    for file, _, name in calls():
        if name in DOORS or name.endswith(("DockerClient", "from_env")):
            found.setdefault(name, []).append(file)
    assert found == DOORS
    session = (PACKAGE / "postgres/session.py").read_text()
    # The admin's, and both of the application's, which have one way to say it.
    opened = re.findall(r"\b\w+\.connect\(\*\*([^\n]*)\)", session)
    assert [what.partition(",")[0] for what in opened] == ["parameters", *2 * ["_application(dsn"]]
    assert session.count('parameters["connect_timeout"] = ') == 1
    assert session.count('"connect_timeout": CONNECT_TIMEOUT, **') == 1
    assert "tc.client.api.timeout = " in (PACKAGE / "servers/docker/daemon.py").read_text()
    assert "timeout=CALL_LIMIT)" in (PACKAGE / "servers/docker/over_ssh.py").read_text()


def test_few_sessions_have_no_limits() -> None:
    """Migrations have migration_timeout; who looks at a server of somebody else's changes nothing, and waits for nobody; a pooler's
    console takes no settings, and each of its commands has the limit of a silent server."""
    found = [
        file
        for file, call, name in calls()
        if name.endswith("Session.connect") and any(keyword.arg == "limited" for keyword in call.keywords)
    ]
    assert found == ["postgres/console.py", "postgres/script.py", "servers/external.py"]


def test_whoever_waits_for_a_lock_in_the_server_says_for_how_long() -> None:
    """One of these waits had none: a test that queued for the lock kept every new run out."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".sh", ".sql")
        and re.search(r"\bpg_advisory_(xact_)?lock", path.read_text())
    }
    assert found == set(WAITS_FOR_LOCKS)
