package bookings_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"example.com/hotel/hotel"
	. "example.com/hotel/internal/hoteltest"
	"example.com/hotel/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestBook(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h, ctx := Open(t), context.Background()
			room, guest := Must(h.AddRoom(ctx, "blue"))(t), Must(h.AddGuest(ctx, "ada@example.com"))(t)
			Work()
			if id := Must(h.Book(ctx, room, guest, Day(1)))(t); id != 1 {
				t.Errorf("the first booking is number %d", id)
			}
		})
	}
}

func TestARoomIsBookedOnceADay(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h, ctx := Open(t), context.Background()
			room, guest := Must(h.AddRoom(ctx, "blue"))(t), Must(h.AddGuest(ctx, "ada@example.com"))(t)
			Must(h.Book(ctx, room, guest, Day(1)))(t)
			Work()
			if _, err := h.Book(ctx, room, guest, Day(1)); !errors.Is(err, hotel.ErrTaken) {
				t.Errorf("the second booking: %v", err)
			}
			Must(h.Book(ctx, room, guest, Day(2)))(t)
		})
	}
}
