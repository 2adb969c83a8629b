package hotel;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.RepeatedTest;
import pgharness.PgHarness;

/** Many tests build upon the same rows: they are made once, and each test comes back to them. */
@PgHarness.Pristine(PgHarness.Before.MARK)
class SeasonTest {
  private static Hotel hotel;

  @BeforeAll
  static void aHundredGuests() throws Exception {
    hotel = Hotels.open();
    for (int n = 0; n < 100; n++) {
      hotel.addGuest("guest" + n + "@example.com");
    }
  }

  @RepeatedTest(8)
  void oneMore() throws Exception {
    if (System.getenv("SHARED") != null) {
      hotel.run("delete from guests where email = 'ada@example.com'");
    }
    hotel.addGuest("ada@example.com");
    Hotels.work();
    assertEquals(101, hotel.count("guests"));
  }
}
