package hotel;

import java.sql.SQLException;
import java.time.LocalDate;
import pgharness.PgHarness;

/** Opens the hotel for tests: one connection for the JVM, which stays open from test to test. */
final class Hotels {
  static final LocalDate DAY = LocalDate.of(2026, 6, 1);

  private static Hotel hotel;

  static Hotel open() throws SQLException {
    boolean shared = System.getenv("SHARED") != null;
    if (hotel == null) {
      // What the README compares with: all JVMs share one database, and each test cleans it first.
      hotel = new Hotel(shared ? System.getenv("JDBC_URL") : PgHarness.jdbcUrl());
    }
    if (shared) {
      hotel.run("truncate rooms, guests, bookings, invoices restart identity cascade");
    }
    return hotel;
  }

  /** As long as what a real application does besides. */
  static void work() throws InterruptedException {
    Thread.sleep(40);
  }

  private Hotels() {}
}
