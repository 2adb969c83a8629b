"""The variables are right before any conftest is imported, in every process, or the run stops."""

from __future__ import annotations

import os
import re

from fix_plugin import USUAL, Folder, Place

CONFTEST = """
    import os
    AT_IMPORT = os.environ["DATABASE_URL"]
"""

DISTINCT = """
    import os, psycopg, pytest
    from conftest import AT_IMPORT

    @pytest.mark.parametrize("number", range(8))
    def test_own_database(number, pg, pg_url, pg_conn, pg_harness, worker_id):
        assert AT_IMPORT == os.environ["DATABASE_URL"] == pg.url == pg_url
        name = pg_conn.execute("select current_database()").fetchone()[0]
        assert name == os.environ["PGDATABASE"] and pg_harness.run in name
        assert worker_id.replace("master", "main") == pg.worker
        with psycopg.connect("") as by_libpq:
            assert by_libpq.execute("select current_database(), count(*) from kinds").fetchone() == (name, 2)
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(name + "\\n")
"""


def seen(folder: Folder) -> set[str]:
    return set((folder.path / "seen").read_text().split())


def test_each_process_has_its_own(folder: Folder, place: Place) -> None:
    folder.write(conftest=CONFTEST, test_a=DISTINCT)
    env = {"SEEN": str(folder.path / "seen"), "DATABASE_URL": "postgresql://production/precious",
           "PGHOSTADDR": "192.0.2.1"}  # fmt: skip
    result = folder.pytest(env=env).ok(8)
    assert len(seen(folder)) == 1
    assert "pg-harness: PostgreSQL 1" in result.text
    assert "sql:migrations, template" in result.text
    assert f"root {place.root} (has pg-harness.toml)" in result.text
    (folder.path / "seen").unlink()
    result = folder.pytest("-n", "3", "-q", env=env).ok(8)
    assert len(seen(folder)) == 3
    # -q is quiet.
    assert "pg-harness:" not in result.text
    assert place.leases() == []
    assert list((place.root / ".state" / "runs").iterdir()) == []


def test_runs_that_only_look_start_nothing(folder: Folder) -> None:
    folder.write(
        conftest="import os; print('AT IMPORT', os.environ['DATABASE_URL'], os.environ['PGDATABASE'])",
        test_a="def test_it(pg): pass",
    )
    env = {"PGHARNESS_STATE_DIR": str(folder.path / "state")}
    for option in ("--collect-only", "--fixtures", "--markers", "--setup-plan", "--help"):
        result = folder.pytest(option, "-s", env=env)
        assert result.code == 0, result.text
        if found := re.search(r"AT IMPORT (\S+) not_started", result.text):
            assert re.fullmatch(r"postgresql://app:not_started@127\.0\.0\.1:\d+/not_started", found[1])
        if option == "--markers":
            assert "serial_only" in result.text
            assert "parallel_safe" in result.text
    # No server was started: nothing of one was noted.
    assert not (folder.path / "state").exists()


def test_switched_off_is_off(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, sys
        def test_nothing(): assert "DATABASE_URL" not in os.environ and "harness" not in sys.modules
        """
    )
    (folder.path / "sitecustomize.py").write_text("")
    # By the entry point's name, as users write it.
    assert folder.pytest("-p", "no:pg_harness_pytest").code == 0


def test_switched_off_as_it_is_installed(folder: Folder) -> None:
    """By the name of its entry point, in every process; the plugin is found as pip would have put it there."""
    site = folder.path / "site"
    (site / "pg_harness-0.dist-info").mkdir(parents=True)
    (site / "pg_harness-0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pg-harness\nVersion: 0\n"
    )
    (site / "pg_harness-0.dist-info" / "entry_points.txt").write_text(
        "[pytest11]\npg_harness = pg_harness_pytest\n"
    )
    folder.write(
        test_a="""
        import os, sys
        def test_it(): assert ("DATABASE_URL" in os.environ) == ("harness" in sys.modules) == ("on" in os.environ["IS"])
        """
    )
    path = f"{site}{os.pathsep}{folder.place.environ['PYTHONPATH']}"
    autoload = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "PYTHONPATH": path}
    # Only what is asked for here: the suite's own environment may hold any other plugin.
    others = ("-p", "no:randomly", "-p", "no:django", "-p", "no:pytest_pg", "-p", "no:env")
    for workers in ("0", "1"):
        folder.pytest("-n", workers, *others, plugins=(), env={**autoload, "IS": "on"}).ok(1)
        off = folder.pytest(
            "-n", workers, *others, "-p", "no:pg_harness", plugins=(), env={**autoload, "IS": "off"}
        )
        assert "pg-harness" not in off.ok(1).text


def test_a_changed_url_stops_the_run(folder: Folder) -> None:
    folder.write(
        conftest="import os; os.environ['DATABASE_URL'] = 'postgresql://dev:geheim@db.example/dev'",
        test_a="def test_it(): open('ran', 'w')",
    )
    result = folder.pytest("-n", "2")
    assert result.code == 4, result.text
    assert result.text.count("somebody has changed what was exported") == 1
    assert "dev:***@db.example" in result.text
    assert "geheim" not in result.text
    assert "Traceback" not in result.text
    assert not (folder.path / "ran").exists()
    assert folder.pytest(env={"PGHARNESS_ALLOW_URL_CHANGE": "true"})["passed"] == 1

    folder.write(
        conftest="""
        import os
        def pytest_configure(): os.environ['DATABASE_URL'] = 'sqlite:///dev.db'
        """
    )
    result = folder.pytest()
    assert result.code == 4
    assert "sqlite:///dev.db" in result.text
    # Another driver in front of the same address is no other database.
    folder.write(
        conftest="""
        import os
        os.environ['DATABASE_URL'] = os.environ['DATABASE_URL'].replace('postgresql://', 'postgresql+asyncpg://')
        """
    )
    folder.pytest().ok(1)


def test_pytest_env_is_noticed(folder: Folder) -> None:
    folder.write(test_a="def test_it(): pass")
    (folder.path / "pytest.ini").write_text(
        "[pytest]\nenv =\n    DATABASE_URL=postgresql://dev@localhost/dev\n"
    )
    result = folder.pytest(plugins=(*USUAL, "pytest_env.plugin"))
    assert result.code == 4, result.text
    assert "postgresql://dev@localhost:5432/dev" in result.text


def test_a_pytest_inside_a_test_has_its_own_lease(folder: Folder) -> None:
    (folder.path / "inner").mkdir()
    (folder.path / "inner" / "pytest.ini").write_text("[pytest]\n")
    (folder.path / "inner" / "test_inner.py").write_text(
        "import os\ndef test_it(pg): assert pg.url != os.environ['OUTER'], pg.url\n"
    )
    folder.write(
        test_a="""
        import os, subprocess, sys, pytest
        ARGS = ["-p", "pg_harness_pytest", "-p", "xdist", "-p", "no:cacheprovider"]

        def test_in_a_process(pg):
            env = {**os.environ, "OUTER": pg.url}
            subprocess.run([sys.executable, "-m", "pytest", *ARGS], cwd="inner", env=env, check=True)

        def test_in_this_process(pg, monkeypatch):
            monkeypatch.setenv("OUTER", pg.url)
            monkeypatch.chdir("inner")
            assert pytest.main([*ARGS, "."]) == 0
            assert os.environ["DATABASE_URL"] == pg.url
        """
    )
    folder.pytest("test_a.py").ok(2)
    folder.pytest("-n", "2", "test_a.py").ok(2)


def test_remote_workers_are_refused(folder: Folder) -> None:
    folder.write(test_a="def test_it(): pass")
    result = folder.pytest("--dist=load", "--tx", "ssh=nobody@192.0.2.1")
    assert result.code == 4, result.text
    assert "is not a process of this machine" in result.text


def test_a_worker_without_the_plugin_reaches_no_database(folder: Folder) -> None:
    folder.write(
        conftest="""
        def pytest_xdist_setupnodes(config, specs):
            for spec in specs: spec.env["PYTEST_PLUGINS"] = ""
        """,
        test_a="""
        import os, psycopg, pytest
        def test_it():
            assert "worker_without_pg_harness" in os.environ["DATABASE_URL"]
            with pytest.raises(psycopg.OperationalError): psycopg.connect(os.environ["DATABASE_URL"])
        """,
    )
    folder.pytest("-n", "1", plugins=("xdist",), env={"PYTEST_PLUGINS": "pg_harness_pytest"}).ok(1)


def test_errors_are_one_screen_once(folder: Folder, place: Place) -> None:
    folder.write(test_a="def test_it(): pass")
    (folder.path / "bad").mkdir()
    (folder.path / "bad" / "001.sql").write_text("create table a (id int);\ncreate tabel b ();\n")
    result = folder.pytest("-n", "3", env={"PGHARNESS_MIGRATIONS": f"sql:{folder.path.name}/bad"})
    assert result.code == 4, result.text
    assert result.text.count("syntax error") == 1
    assert "001.sql" in result.text
    assert "Traceback" not in result.text
    result = folder.pytest("-n", "64")
    assert result.code == 4, result.text
    assert "64 workers and their controller need" in result.text
    assert "connections_per_worker = 0" not in result.text
    result = folder.pytest(env={"PGHARNESS_FRESH": "sometimes"})
    assert result.code == 4
    assert "PGHARNESS_FRESH" in result.text
    assert "'reset', 'clone', 'none'" in result.text
    assert place.leases() == []


def test_no_migrations_is_an_empty_database_said_once(folder: Folder) -> None:
    folder.write(
        test_a="def test_it(pg_conn): assert pg_conn.execute('select count(*) from pg_tables where schemaname = $$public$$').fetchone() == (0,)"
    )
    (folder.path / "pg-harness.toml").write_text("")
    text = (folder.place.root / "pg-harness.toml").read_text().replace('migrations = ["sql:migrations"]', "")
    (folder.path / "pg-harness.toml").write_text(text)
    try:
        result = folder.pytest().ok(1)
        assert result.text.count("no migrations are configured, none were found") == 1
    finally:
        from harness.config.load import load
        from harness.config.project import Project
        from harness.servers import inventory

        inventory.stop(Project.of(load(folder.place.environ, start=folder.path), folder.place.environ))


def test_the_run_file_is_private(folder: Folder) -> None:
    folder.write(
        test_a="""
        import json, os, stat
        def test_it(pg):
            path = os.environ["PGHARNESS_RUN_FILE"]
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert json.load(open(path))["run"] == pg.run
            import sys
            assert not {"docker", "testcontainers"} & set(sys.modules)
        """
    )
    folder.pytest("-n", "1").ok(1)
