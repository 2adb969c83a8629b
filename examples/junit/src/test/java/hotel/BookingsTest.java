package hotel;

import static hotel.Hotels.DAY;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.sql.SQLException;
import org.junit.jupiter.api.RepeatedTest;

class BookingsTest {
  @RepeatedTest(8)
  void book() throws Exception {
    Hotel hotel = Hotels.open();
    int room = hotel.addRoom("blue");
    int guest = hotel.addGuest("ada@example.com");
    Hotels.work();
    assertEquals(1, hotel.book(room, guest, DAY));
  }

  @RepeatedTest(8)
  void aRoomIsBookedOnceADay() throws Exception {
    Hotel hotel = Hotels.open();
    int room = hotel.addRoom("blue");
    int guest = hotel.addGuest("ada@example.com");
    hotel.book(room, guest, DAY);
    Hotels.work();
    assertThrows(SQLException.class, () -> hotel.book(room, guest, DAY));
    hotel.book(room, guest, DAY.plusDays(1));
  }
}
