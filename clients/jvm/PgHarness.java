package pgharness;

import java.io.IOException;
import java.lang.annotation.ElementType;
import java.lang.annotation.Inherited;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.net.URI;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.extension.AfterAllCallback;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.BeforeEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.extension.ParameterContext;
import org.junit.jupiter.api.extension.ParameterResolver;
import org.junit.jupiter.api.parallel.ExecutionMode;

/**
 * A pristine PostgreSQL of a living {@code pg-harness run} for each JVM of Surefire or Gradle, and for each test.
 *
 * <p>Registered for all classes (META-INF/services and {@code junit.jupiter.extensions.autodetection.enabled}), or for one by
 * {@code @ExtendWith(PgHarness.class)}. The JVM leases a database before its first class and gives it back by ending; or it has that of a number
 * ({@code -Dpgharness.worker=${surefire.forkNumber}}). The run's variables become system properties (DATABASE_URL,
 * PGHOST … and those of [tool.pg-harness.env]), since the environment of a JVM cannot be changed; and pgharness.jdbc.url.
 *
 * <p>One file, the JDK and JUnit's API only; JDK 11 or later. Written by {@code pg-harness init junit}; it is yours: change what you like.
 */
public final class PgHarness
    implements BeforeAllCallback, BeforeEachCallback, AfterEachCallback, AfterAllCallback, ParameterResolver {

  /** When the database becomes pristine again. */
  public enum Before {
    /** Each test. What @BeforeAll writes is there for the first one only: with it, MARK is meant. */
    TEST,
    /** Each class: its tests build upon one another. */
    CLASS,
    /** Each class; and each test finds what its @BeforeAll left. */
    MARK
  }

  /** Chooses for a class; {@code -Dpgharness.before=mark} chooses for all others, which have TEST without it. */
  @Target(ElementType.TYPE)
  @Retention(RetentionPolicy.RUNTIME)
  @Inherited
  public @interface Pristine {
    Before value();
  }

  /** What cannot be had, and why. */
  public static final class PgHarnessException extends IllegalStateException {
    private static final long serialVersionUID = 1;

    PgHarnessException(String message, Throwable cause) {
      super(message, cause);
    }
  }

  /** One database of the run. As the parameter of a test: its own, given back at its end, for tests that run in one JVM at once. */
  public static final class Database {
    /** Its number, as in DATABASE_URL_1. */
    public final int id;

    /** DATABASE_URL, PGHOST … and those of [tool.pg-harness.env]. */
    public final Map<String, String> env;

    private Database(int id, Map<String, String> env) {
      this.id = id;
      this.env = Map.copyOf(env);
    }

    /** postgresql://… */
    public String url() {
      return env.get("DATABASE_URL");
    }

    /** For pgJDBC: user and password are in it. */
    public String jdbcUrl() {
      return jdbc(url());
    }

    /** Back to the last mark, else to what the migrations made. */
    public void reset() {
      call("POST", "/v1/reset/" + id, null, PATIENCE);
    }

    /** The present state is what reset comes back to; marks stack. */
    public String mark() {
      return (String) call("POST", "/v1/mark/" + id, null, PATIENCE).get("mark");
    }

    /** Forget a mark, and those above it. The rows stay until the next reset. */
    public void unmark(String mark) {
      call("DELETE", "/v1/mark/" + id + "/" + encoded(mark), null, PATIENCE);
    }

    void release() {
      call("POST", "/v1/release/" + id, null, PATIENCE);
    }

    @Override
    public String toString() {
      return "<Database " + id + " of the run " + System.getenv("PGHARNESS_RUN") + ">";
    }
  }

  private static final String COMMAND = "pg-harness run -n 4 -- mvn test";
  private static final Duration PATIENCE = Duration.ofMinutes(2);
  private static final ExtensionContext.Namespace NAMESPACE = ExtensionContext.Namespace.create(PgHarness.class);
  // Without a proxy, which the JVM may have been told of: what is asked is on this machine.
  private static final HttpClient CLIENT =
      HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).proxy(HttpClient.Builder.NO_PROXY).build();

  private static Database own;
  private static PgHarnessException failed;
  private static int leases;

  /** A class whose tests run; a @Nested one is inside its outer one's. */
  private static final class Level {
    final Before before;
    String mark;

    Level(Before before) {
      this.before = before;
    }
  }

  // --- for tests and for code that asks -----------------------------------------------------------------

  /** This JVM's database: taken, pristine, by whoever asks first. It is given back by the JVM's end. */
  public static synchronized Database database() {
    if (failed != null) {
      // Once is enough to wait for one.
      throw new PgHarnessException(failed.getMessage(), failed);
    }
    if (own == null) {
      try {
        Database taken = take();
        taken.env.forEach(System::setProperty);
        System.setProperty("pgharness.jdbc.url", taken.jdbcUrl());
        own = taken;
      } catch (PgHarnessException error) {
        failed = error;
        throw error;
      }
    }
    return own;
  }

  /** The address of this JVM's database for pgJDBC: user and password are in it. */
  public static String jdbcUrl() {
    return database().jdbcUrl();
  }

  // --- for JUnit ----------------------------------------------------------------------------------------

  @Override
  public void beforeAll(ExtensionContext context) {
    if (manyAtOnce(context)) {
      // Each test takes a Database of its own; there is none of the class.
      return;
    }
    Database database = database();
    Level outer = level(context);
    if (outer == null) {
      call("POST", "/v1/reset/" + database.id + "?to=template", null, PATIENCE);
    } else {
      settle(database, outer);
    }
    context.getStore(NAMESPACE).put(Level.class, new Level(chosen(context)));
  }

  @Override
  public void beforeEach(ExtensionContext context) {
    if (manyAtOnce(context)) {
      for (Class<?> type : context.getRequiredTestMethod().getParameterTypes()) {
        if (type == Database.class) {
          return;
        }
      }
      throw problem(
          "tests that run at once in one JVM (junit.jupiter.execution.parallel.enabled) would share its database. Give this one a parameter"
              + " of the type PgHarness.Database, or let processes run at once instead: <forkCount> of Surefire, maxParallelForks of Gradle");
    }
    settle(database(), level(context));
  }

  @Override
  public void afterAll(ExtensionContext context) {
    // Its own, not the outer class's; none where beforeAll has failed.
    Level level = context.getStore(NAMESPACE).remove(Level.class, Level.class);
    if (level != null && level.mark != null) {
      database().unmark(level.mark);
    }
  }

  @Override
  public void afterEach(ExtensionContext context) {
    Database leased = context.getStore(NAMESPACE).remove(Database.class, Database.class);
    if (leased != null) {
      leased.release();
    }
  }

  @Override
  public boolean supportsParameter(ParameterContext parameter, ExtensionContext context) {
    return parameter.getParameter().getType() == Database.class && context.getTestMethod().isPresent();
  }

  @Override
  public Object resolveParameter(ParameterContext parameter, ExtensionContext context) {
    return context
        .getStore(NAMESPACE)
        .getOrComputeIfAbsent(
            Database.class, key -> lease(context.getRequiredTestClass().getSimpleName() + "." + context.getDisplayName()), Database.class);
  }

  private static Level level(ExtensionContext context) {
    return context.getStore(NAMESPACE).get(Level.class, Level.class);
  }

  private static void settle(Database database, Level level) {
    if (level.before == Before.TEST) {
      database.reset();
    } else if (level.before == Before.MARK && level.mark == null) {
      level.mark = database.mark();
    } else if (level.before == Before.MARK) {
      database.reset();
    }
  }

  private static Before chosen(ExtensionContext context) {
    for (Class<?> type = context.getRequiredTestClass(); type != null; type = type.getEnclosingClass()) {
      Pristine said = type.getAnnotation(Pristine.class);
      if (said != null) {
        return said.value();
      }
    }
    String word = System.getProperty("pgharness.before", "test");
    for (Before before : Before.values()) {
      if (before.name().equalsIgnoreCase(word)) {
        return before;
      }
    }
    throw problem("pristine before what? -Dpgharness.before is test, class or mark, not '" + word + "'");
  }

  private static boolean manyAtOnce(ExtensionContext context) {
    boolean enabled =
        context.getConfigurationParameter("junit.jupiter.execution.parallel.enabled").map(Boolean::parseBoolean).orElse(false);
    for (ExtensionContext c = context; enabled && c != null; c = c.getParent().orElse(null)) {
      if (c.getExecutionMode() == ExecutionMode.CONCURRENT) {
        return true;
      }
    }
    return false;
  }

  // --- which database -----------------------------------------------------------------------------------

  private static Database take() {
    String worker = System.getProperty("pgharness.worker", "");
    // Surefire leaves its placeholder as it is where nothing is forked.
    if (worker.isEmpty() || worker.startsWith("${")) {
      return lease("a JVM");
    }
    int count = workers();
    int number = worker.matches("[0-9]{1,9}") ? Integer.parseInt(worker) : 0;
    boolean copy = variable("PGHARNESS_COPIES") != null;
    if (number < 1 || number > (copy ? 1 : count)) {
      throw problem(
          "worker '" + worker + "' (pgharness.worker) has no database: " + (copy ? "a copy of `run --copies` has 1" : "this run has " + count)
              + ", numbered from 1. Give it as many as there are JVMs (`pg-harness run -n N`), or fork fewer (<forkCount>)");
    }
    String id = copy ? variable("PGHARNESS_LEASE") : String.valueOf(number);
    for (Object lease : (List<?>) call("GET", "/v1/status", null, PATIENCE).getOrDefault("leases", List.of())) {
      Map<?, ?> told = (Map<?, ?>) lease;
      if (!copy && ((Number) told.get("id")).intValue() == number && "leased".equals(told.get("state"))) {
        throw problem(
            "database " + number + " is leased by " + told.get("worker") + ", and worker " + number + " (pgharness.worker) would reset it below them."
                + " Where tests or other JVMs lease databases, leave the number out: every JVM leases one then");
      }
    }
    call("POST", "/v1/reset/" + id + "?to=template", null, PATIENCE);
    return read(call("GET", "/v1/env/" + id, null, PATIENCE));
  }

  private static Database lease(String who) {
    workers();
    if (variable("PGHARNESS_COPIES") != null) {
      throw problem("a copy of `pg-harness run --copies` has one database, and JVMs or tests at once would share it. Run `" + COMMAND + "` instead");
    }
    int number;
    synchronized (PgHarness.class) {
      number = ++leases;
    }
    String wait = variable("PGHARNESS_LEASE_WAIT") == null ? "300" : variable("PGHARNESS_LEASE_WAIT");
    if (!wait.matches("[0-9]{1,4}") || Integer.parseInt(wait) > 3600) {
      throw problem("PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not '" + wait + "'");
    }
    long pid = ProcessHandle.current().pid();
    String name = who.replaceAll("[^ -~]|[\"\\\\]", "?");
    // A name that no other lease has: the same worker would be given the same database once more.
    String worker = name.substring(0, Math.min(name.length(), 150)) + " (" + pid + "." + number + ")";
    String body = "{\"worker\": \"" + worker + "\", \"pid\": " + pid + ", \"wait\": " + wait + "}";
    return read(call("POST", "/v1/lease", body, PATIENCE.plusSeconds(Long.parseLong(wait))));
  }

  private static Database read(Map<String, Object> answer) {
    Map<String, String> env = new LinkedHashMap<>();
    ((Map<?, ?>) answer.get("env")).forEach((name, value) -> env.put((String) name, (String) value));
    return new Database(((Number) answer.get("id")).intValue(), env);
  }

  private static int workers() {
    if (variable("PGHARNESS_CONTROL_URL") == null || variable("PGHARNESS_CONTROL_TOKEN") == null) {
      throw problem("these tests have no database: they were started outside of pg-harness. Run `" + COMMAND + "`");
    }
    String count = variable("PGHARNESS_WORKERS");
    return count != null && count.matches("[0-9]{1,9}") ? Integer.parseInt(count) : 1;
  }

  private static String variable(String name) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? null : value;
  }

  private static PgHarnessException problem(String message) {
    return new PgHarnessException("pg-harness: " + message, null);
  }

  /** The address for pgJDBC of one for libpq. */
  static String jdbc(String url) {
    URI parts = URI.create(url);
    if (parts.getHost() == null) {
      throw problem("pgJDBC needs a host and a port, and this database's address has none (a Unix socket?)");
    }
    String[] user = parts.getRawUserInfo() == null ? new String[0] : parts.getRawUserInfo().split(":", 2);
    StringBuilder query = new StringBuilder();
    String[] names = {"user", "password"};
    for (int i = 0; i < user.length; i++) {
      query.append(query.length() == 0 ? '?' : '&').append(names[i]).append('=').append(encoded(decoded(user[i])));
    }
    if (parts.getRawQuery() != null) {
      for (String pair : parts.getRawQuery().split("&")) {
        String[] said = pair.split("=", 2);
        String name = said[0].equals("application_name") ? "ApplicationName" : said[0].equals("connect_timeout") ? "connectTimeout" : said[0];
        query.append(query.length() == 0 ? '?' : '&').append(name).append('=').append(encoded(decoded(said.length > 1 ? said[1] : "")));
      }
    }
    return "jdbc:postgresql://" + parts.getHost() + (parts.getPort() < 0 ? "" : ":" + parts.getPort()) + parts.getRawPath() + query;
  }

  private static String encoded(String text) {
    return URLEncoder.encode(text, StandardCharsets.UTF_8).replace("+", "%20");
  }

  private static String decoded(String text) {
    // A plus is a plus in libpq's addresses.
    return URLDecoder.decode(text.replace("+", "%2B"), StandardCharsets.UTF_8);
  }

  // --- the control interface ----------------------------------------------------------------------------

  private static Map<String, Object> call(String method, String path, String body, Duration patience) {
    workers();
    String base = variable("PGHARNESS_CONTROL_URL");
    if (base.startsWith("unix:")) {
      throw problem("java.net.http knows no Unix sockets (PGHARNESS_CONTROL_URL is " + base + "): `pg-harness serve` without --socket");
    }
    HttpResponse<String> response;
    try {
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(base + path))
              .timeout(patience)
              .header("Authorization", "Bearer " + variable("PGHARNESS_CONTROL_TOKEN"))
              .header("Content-Type", "application/json")
              .method(method, HttpRequest.BodyPublishers.ofString(body == null ? "" : body))
              .build();
      response = CLIENT.send(request, HttpResponse.BodyHandlers.ofString(StandardCharsets.UTF_8));
    } catch (IOException error) {
      String why = error.getMessage() == null ? error.getClass().getSimpleName() : error.getMessage();
      throw new PgHarnessException(
          "pg-harness: nobody answers at " + base + " (PGHARNESS_CONTROL_URL): " + why + ". The run " + variable("PGHARNESS_RUN")
              + " is over or was killed; its databases are gone, and no others are taken in their stead. Run `" + COMMAND + "`",
          error);
    } catch (IllegalArgumentException error) {
      throw new PgHarnessException("pg-harness: PGHARNESS_CONTROL_URL or its token is not one: " + error.getMessage(), error);
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
      throw new PgHarnessException("pg-harness: interrupted while a database was asked for", error);
    }
    Map<String, Object> answer = Json.object(response.body());
    if (response.statusCode() < 300) {
      return answer;
    }
    Object detail = answer.getOrDefault("detail", answer.getOrDefault("title", response.body()));
    // It names who has the databases, where none is free.
    throw problem(detail + " (" + method + " " + path + ": " + response.statusCode() + ")");
  }

  /** Reads JSON: as much of it as the control interface answers with. */
  private static final class Json {
    private final String text;
    private int at;

    private Json(String text) {
      this.text = text;
    }

    /** An object; empty where the text is no JSON, or another kind of it. */
    @SuppressWarnings("unchecked")
    static Map<String, Object> object(String text) {
      try {
        Object read = new Json(text).value();
        return read instanceof Map ? (Map<String, Object>) read : Map.of();
      } catch (IndexOutOfBoundsException | NumberFormatException error) {
        return Map.of();
      }
    }

    private char next() {
      while (Character.isWhitespace(text.charAt(at))) {
        at++;
      }
      return text.charAt(at);
    }

    private boolean found(char sign) {
      if (next() != sign) {
        return false;
      }
      at++;
      return true;
    }

    private void expect(char sign) {
      if (!found(sign)) {
        throw new NumberFormatException("no " + sign + " at " + at);
      }
    }

    private Object value() {
      switch (next()) {
        case '{':
          at++;
          Map<String, Object> members = new LinkedHashMap<>();
          while (!found('}')) {
            next();
            String name = string();
            expect(':');
            members.put(name, value());
            found(',');
          }
          return members;
        case '[':
          at++;
          List<Object> items = new ArrayList<>();
          while (!found(']')) {
            items.add(value());
            found(',');
          }
          return items;
        case '"':
          return string();
        default:
          int begin = at;
          while (at < text.length() && "+-.0123456789abcdefghijklmnopqrstuvwxyzE".indexOf(text.charAt(at)) >= 0) {
            at++;
          }
          String word = text.substring(begin, at);
          switch (word) {
            case "true":
              return true;
            case "false":
              return false;
            case "null":
              return null;
            default:
              return Double.valueOf(word);
          }
      }
    }

    private String string() {
      expect('"');
      StringBuilder read = new StringBuilder();
      for (char sign = text.charAt(at++); sign != '"'; sign = text.charAt(at++)) {
        if (sign != '\\') {
          read.append(sign);
          continue;
        }
        char escaped = text.charAt(at++);
        if (escaped == 'u') {
          read.append((char) Integer.parseInt(text.substring(at, at + 4), 16));
          at += 4;
        } else {
          int place = "bfnrt".indexOf(escaped);
          read.append(place < 0 ? escaped : "\b\f\n\r\t".charAt(place));
        }
      }
      return read.toString();
    }
  }
}
