"""JUnit 5 by the real Maven: a database for each JVM of Surefire, pristine before each test; and what is refused.

Three calls of Maven, since each takes seconds; the rest asks the classes that the third has compiled, by JUnit's own console.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable

import pytest
from fix_cli import Project
from fix_languages import CLIENTS, EXAMPLES, call, commands, copy_example, living, need, write
from fix_snippets import DOCS, files, runs

CLIENT = CLIENTS / "jvm" / "PgHarness.java"
PLACE = "src/test/java/pgharness/PgHarness.java"
QUIET = ("-B", "-ntp")
BRIEF = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""For JVMs that live for seconds: less is compiled, by fewer threads."""

# Surefire runs *Test.java; these are for the console.
LOOK = """package app;
import pgharness.PgHarness;
import java.sql.*;
import java.util.*;
final class Look {
  static final Set<Integer> backends = new HashSet<>();
  static Connection connection;
  static List<String> names() throws Exception {
    List<String> names = new ArrayList<>();
    try (ResultSet rows = connection().createStatement().executeQuery("select name from users order by id")) {
      while (rows.next()) names.add(rows.getString(1));
    }
    return names;
  }
  static void add(String name) throws Exception {
    connection().createStatement().execute("insert into users (name) values ('" + name + "')");
  }
  static Connection connection() throws Exception {
    if (connection == null) connection = DriverManager.getConnection(System.getProperty("pgharness.jdbc.url"));
    return connection;
  }
  static void stayed() throws Exception {
    try (ResultSet rows = connection().createStatement().executeQuery("select pg_backend_pid()")) {
      rows.next();
      backends.add(rows.getInt(1));
    }
    org.junit.jupiter.api.Assertions.assertEquals(1, backends.size());
  }
}
"""

MODES = """package app;
import static org.junit.jupiter.api.Assertions.*;
import java.util.*;
import org.junit.jupiter.api.*;
import pgharness.PgHarness;
@TestMethodOrder(MethodOrderer.MethodName.class)
@PgHarness.Pristine(PgHarness.Before.%(mode)s)
class See%(name)sFirst {
  @BeforeAll static void before() throws Exception { Look.add("eve"); }
  @Test void a() throws Exception { Look.add("a"); see("a"); }
  @Test void b() throws Exception { Look.add("b"); see("b"); }
  @Nested class Inner {
    // JDK 16 and later allow it to be static.
    @BeforeAll static void before() throws Exception { Look.add("inner"); }
    @Test void c() throws Exception { Look.add("c"); see("c"); }
    @Test void d() throws Exception { Look.add("d"); see("d"); }
  }
  private void see(String test) throws Exception {
    System.out.println("saw %(name)s " + test + ": " + String.join(",", Look.names()));
    Look.stayed();
  }
}
"""

SAW = {
    "Test": {"a": "a", "b": "b", "c": "c", "d": "d"},
    "Class": {"a": "eve,a", "b": "eve,a,b", "c": "eve,a,b,inner,c", "d": "eve,a,b,inner,c,d"},
    "Mark": {"a": "eve,a", "b": "eve,b", "c": "eve,inner,c", "d": "eve,inner,d"},
}

SMALL = """package app;
import org.junit.jupiter.api.*;
import pgharness.PgHarness;
class SmallCase {
  @Test void variables() {
    for (String name : new String[] {"DATABASE_URL", "PGDATABASE", "OWN"}) {
      System.out.println("is " + name + " " + System.getProperty(name));
    }
    System.out.println("has " + PgHarness.database().id);
  }
  @Test void killed() {
    if (System.getenv("KILL") != null) Runtime.getRuntime().halt(9);
  }
}
"""

PATH = """package app;
import java.nio.file.*;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.*;
@Execution(ExecutionMode.SAME_THREAD)
class PathTest {
  @Test void write() throws Exception { Files.writeString(Path.of("classpath"), System.getProperty("java.class.path")); }
}
"""

SHARES = """package app;
import org.junit.jupiter.api.*;
import org.junit.jupiter.api.parallel.*;
@Execution(ExecutionMode.CONCURRENT)
class SharesCase { @Test void one() {} }
"""


def results(project: Project) -> Counter[str]:
    """passed or failed → how many, as Surefire's reports have it."""
    found: Counter[str] = Counter()
    for path in (project.root / "target" / "surefire-reports").glob("*.xml"):
        for test in ET.parse(path).getroot().iter("testcase"):  # noqa: S314 — written by the run
            bad = test.find("failure") is not None or test.find("error") is not None
            found["failed" if bad else "passed"] += 1
    return found


def forget(project: Project) -> None:
    shutil.rmtree(project.root / "target" / "surefire-reports", ignore_errors=True)


@pytest.fixture(scope="module")
def hotel(new_project: Callable[..., Project]) -> Project:
    need("mvn")
    project = copy_example(new_project("junit", migrations=False), "junit")
    project.environ["JAVA_TOOL_OPTIONS"] = BRIEF
    return project


@pytest.fixture(scope="module")
def app(new_project: Callable[..., Project]) -> Project:
    """The files of the page, and ours beside them, compiled; in a folder whose name has a space."""
    need("mvn")
    project = new_project("an app of ours")
    project.environ["JAVA_TOOL_OPTIONS"] = BRIEF
    console = "<dependency><groupId>org.junit.platform</groupId><artifactId>junit-platform-console</artifactId><version>1.14.1</version><scope>test</scope></dependency>"
    pom = (EXAMPLES / "junit" / "pom.xml").read_text().replace("</dependencies>", console + "</dependencies>")
    modes = {
        f"src/test/java/app/See{name}First.java": MODES % {"name": name, "mode": name.upper()} for name in SAW
    }
    ours = {"Look": LOOK, "SmallCase": SMALL, "SharesCase": SHARES, "PathTest": PATH}
    write(project, {
        **files("junit.md"), **modes, **{f"src/test/java/app/{name}.java": text for name, text in ours.items()},
        "pom.xml": pom, PLACE: CLIENT.read_text(),
        "pg-harness.toml": 'migrations = ["sql:db/migrations"]\n\n[env]\nOWN = "{jdbc}"\n',
    })  # fmt: skip
    return project


@pytest.fixture(scope="module")
def page(app: Project) -> subprocess.CompletedProcess[str]:
    """What the page's command did."""
    (words,) = runs("junit.md")
    return app.run(*words, *QUIET, "-Djunit.jupiter.execution.parallel.enabled=true")


def console(app: Project, *names: str, **options: str) -> list[str]:
    """The words that test these classes."""
    classpath = (app.root / "classpath").read_text()
    given = [f"-D{name.replace('_', '.')}={value}" for name, value in options.items()]
    classes = [f"--select-class=app.{name}" for name in names]
    return [
        "java", "-cp", classpath, *given, "org.junit.platform.console.ConsoleLauncher", "execute", *classes,
        "--disable-banner", "--disable-ansi-colors", "--details=tree", "--include-classname=.*",
    ]  # fmt: skip


def test_the_example_fails_on_one_database(hotel: Project) -> None:
    words, variables = commands(hotel)[1]
    done = hotel.run(*words, *QUIET, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(hotel)
    assert found.total() == 64
    assert found["failed"] >= 10, found
    assert re.search("violates (unique|foreign key) constraint|expected: <1>", done.stdout)


def test_the_example_in_parallel_without_clean_up(hotel: Project) -> None:
    forget(hotel)
    words, _ = commands(hotel)[0]
    for path in hotel.root.glob("src/test/java/hotel/*Test.java"):
        assert not re.search("truncate|AfterEach|AfterAll|BeforeEach", path.read_text(), re.I), path
    done = hotel.run(*words, *QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(hotel) == {"passed": 64}
    assert "not isolated" not in done.stderr


def test_the_page(app: Project, page: subprocess.CompletedProcess[str]) -> None:
    assert page.returncode == 0, page.stdout + page.stderr
    assert results(app) == {"passed": 13}
    configured = re.findall(r"^```xml\n(.*?)^```$", (DOCS / "junit.md").read_text(), re.M | re.S)
    assert len(configured) == 1
    assert configured[0] in (app.root / "pom.xml").read_text()


def test_three_modes(app: Project, page: subprocess.CompletedProcess[str]) -> None:
    assert page.returncode == 0
    done = app.run(
        "run", "-n", "2", "--", *console(app, *(f"See{name}First" for name in SAW), pgharness_worker="2")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, saw in SAW.items():
        assert dict(re.findall(rf"saw {name} (\w): (\S*)", done.stdout)) == saw, name


def test_variables_and_what_is_refused(app: Project, page: subprocess.CompletedProcess[str]) -> None:
    assert page.returncode == 0
    done = call(app, *console(app, "SmallCase"), DATABASE_URL="postgresql://developer@localhost/precious")
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- mvn test`" in done.stdout
    assert "is DATABASE_URL" not in done.stdout

    with living(app) as run:
        done = call(app, *console(app, "SmallCase"), **run.environ)
        assert done.returncode == 0, done.stdout
        told = dict(re.findall(r"is (\w+) (\S+)", done.stdout))
        assert told["DATABASE_URL"] == run.environ["DATABASE_URL"]
        assert told["PGDATABASE"] == run.environ["PGDATABASE"]
        assert told["OWN"].startswith("jdbc:postgresql://")

        done = call(app, *console(app, "SmallCase"), KILL="1", **run.environ)
        assert done.returncode == 9
        run.ask("POST", "/v1/lease", worker="the greedy one", wait=10)

        for options, environ, said in (
            ({}, {"PGHARNESS_LEASE_WAIT": "1"}, "1: the greedy one, for"),
            ({}, {"PGHARNESS_LEASE_WAIT": "-1"}, "is a number of seconds up to 3600, not '-1'"),
            ({"pgharness_worker": "1"}, {}, "database 1 is leased by the greedy one, and worker 1"),
            ({"pgharness_worker": "2"}, {}, "worker '2' (pgharness.worker) has no database: this run has 1"),
            ({"pgharness_worker": "x"}, {}, "worker 'x' (pgharness.worker) has no database"),
            ({}, {"PGHARNESS_CONTROL_TOKEN": "wrong"}, "this token is not of the run"),
        ):  # fmt: skip
            done = call(app, *console(app, "SmallCase", **options), **{**run.environ, **environ})
            assert done.returncode == 1, (options, done.stdout)
            assert said in done.stdout, (options, done.stdout)

        run.ask("POST", "/v1/release/1")
        done = call(
            app, *console(app, "SmallCase", pgharness_worker="1", pgharness_before="never"), **run.environ
        )
        assert done.returncode == 1
        assert "-Dpgharness.before is test, class or mark, not 'never'" in done.stdout

        parallel = {"junit_jupiter_execution_parallel_enabled": "true"}
        done = call(app, *console(app, "SharesCase", **parallel), **run.environ)
        assert done.returncode == 1
        assert "share its database. Give this one a parameter of the type PgHarness.Database" in done.stdout

        run.kill()
        for options in ({}, {"pgharness_worker": "1"}):
            done = call(app, *console(app, "SmallCase", **options), **run.environ)
            assert done.returncode == 1
            assert f"nobody answers at {run.environ['PGHARNESS_CONTROL_URL']}" in done.stdout
            assert "no others are taken in their stead" in done.stdout
