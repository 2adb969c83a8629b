package hotel;

import static hotel.Hotels.DAY;
import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.api.RepeatedTest;

class InvoicesTest {
  @RepeatedTest(8)
  void invoicesAreNumberedWithoutGaps() throws Exception {
    Hotel hotel = Hotels.open();
    int room = hotel.addRoom("blue");
    int guest = hotel.addGuest("ada@example.com");
    for (int day = 0; day < 3; day++) {
      int booking = hotel.book(room, guest, DAY.plusDays(day));
      Hotels.work();
      assertEquals(1001 + day, hotel.bill(booking, 9900));
    }
  }
}
