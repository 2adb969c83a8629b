package invoices_test

import (
	"context"
	"fmt"
	"testing"

	. "example.com/hotel/internal/hoteltest"
)

// Tests that run at the same time in one process have a database each; this package needs no TestMain.
func TestInvoicesAreNumberedWithoutGaps(t *testing.T) {
	for n := range 12 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			h, ctx := OpenOwn(t), context.Background()
			room, guest := Must(h.AddRoom(ctx, "blue"))(t), Must(h.AddGuest(ctx, "ada@example.com"))(t)
			for day := 1; day <= 3; day++ {
				booking := Must(h.Book(ctx, room, guest, Day(day)))(t)
				Work()
				if number := Must(h.Bill(ctx, booking, 9900))(t); number != 1000+day {
					t.Errorf("invoice %d of the day %d", number, day)
				}
			}
		})
	}
}
