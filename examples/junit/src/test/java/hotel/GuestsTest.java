package hotel;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.api.RepeatedTest;

class GuestsTest {
  @RepeatedTest(16)
  void aGuestComesForTheFirstTime() throws Exception {
    Hotel hotel = Hotels.open();
    assertEquals(1, hotel.addGuest("ada@example.com"));
    Hotels.work();
    assertEquals(1, hotel.count("guests"));
  }
}
