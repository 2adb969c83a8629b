package hotel;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.sql.SQLException;
import org.junit.jupiter.api.RepeatedTest;

class RoomsTest {
  @RepeatedTest(8)
  void theFirstRoomIsNumberOne() throws Exception {
    Hotel hotel = Hotels.open();
    assertEquals(1, hotel.addRoom("blue"));
    Hotels.work();
    assertEquals(1, hotel.count("rooms"));
  }

  @RepeatedTest(8)
  void twoRoomsOfOneNameAreRefused() throws Exception {
    Hotel hotel = Hotels.open();
    hotel.addRoom("blue");
    Hotels.work();
    assertThrows(SQLException.class, () -> hotel.addRoom("blue"));
  }
}
