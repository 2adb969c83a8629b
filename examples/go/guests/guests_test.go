package guests_test

import (
	"context"
	"fmt"
	"testing"

	. "example.com/hotel/internal/hoteltest"
	"example.com/hotel/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestAGuestComesForTheFirstTime(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h, ctx := Open(t), context.Background()
			if id := Must(h.AddGuest(ctx, "ada@example.com"))(t); id != 1 {
				t.Errorf("the first guest is number %d", id)
			}
			Work()
			if count := Must(h.Count(ctx, "guests"))(t); count != 1 {
				t.Errorf("%d guests", count)
			}
		})
	}
}

// Many tests build upon the same rows: they are made once, and each test comes back to them.
func TestWithAHundredGuests(t *testing.T) {
	h, ctx := Open(t), context.Background()
	for n := range 100 {
		Must(h.AddGuest(ctx, fmt.Sprintf("guest%d@example.com", n)))(t)
	}
	Keep(t)
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h := OpenAgain(t)
			Must(h.AddGuest(ctx, "ada@example.com"))(t)
			Work()
			if count := Must(h.Count(ctx, "guests"))(t); count != 101 {
				t.Errorf("%d guests", count)
			}
		})
	}
}
