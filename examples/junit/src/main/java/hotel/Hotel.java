package hotel;

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.LocalDate;

/** What the tests are about: rooms, guests, bookings, invoices, over one connection. */
public final class Hotel implements AutoCloseable {
  private final Connection connection;

  public Hotel(String jdbcUrl) throws SQLException {
    connection = DriverManager.getConnection(jdbcUrl);
  }

  public int addRoom(String name) throws SQLException {
    return number("insert into rooms (name) values (?) returning id", name);
  }

  public int addGuest(String email) throws SQLException {
    return number("insert into guests (email) values (?) returning id", email);
  }

  public int book(int room, int guest, LocalDate day) throws SQLException {
    return number("insert into bookings (room_id, guest_id, day) values (?, ?, ?) returning id", room, guest, day);
  }

  /** Writes the next invoice, in one transaction. */
  public int bill(int booking, int cents) throws SQLException {
    connection.setAutoCommit(false);
    try {
      int number = number("select coalesce(max(number), 1000) + 1 from invoices");
      number("insert into invoices (number, booking_id, cents) values (?, ?, ?) returning number", number, booking, cents);
      connection.commit();
      return number;
    } finally {
      connection.rollback();
      connection.setAutoCommit(true);
    }
  }

  public int count(String table) throws SQLException {
    return number("select count(*) from " + table);
  }

  public int backend() throws SQLException {
    return number("select pg_backend_pid()");
  }

  public String database() throws SQLException {
    return connection.getCatalog();
  }

  public void run(String sql) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      statement.execute();
    }
  }

  private int number(String sql, Object... values) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      for (int i = 0; i < values.length; i++) {
        statement.setObject(i + 1, values[i]);
      }
      try (ResultSet rows = statement.executeQuery()) {
        rows.next();
        return rows.getInt(1);
      }
    }
  }

  @Override
  public void close() throws SQLException {
    connection.close();
  }
}
