package rooms_test

import (
	"context"
	"fmt"
	"testing"

	. "example.com/hotel/internal/hoteltest"
	"example.com/hotel/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestTheFirstRoomIsNumberOne(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h, ctx := Open(t), context.Background()
			if id := Must(h.AddRoom(ctx, "blue"))(t); id != 1 {
				t.Errorf("the first room is number %d", id)
			}
			Work()
			if count := Must(h.Count(ctx, "rooms"))(t); count != 1 {
				t.Errorf("%d rooms", count)
			}
		})
	}
}

func TestTwoRoomsOfOneNameAreRefused(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h, ctx := Open(t), context.Background()
			Must(h.AddRoom(ctx, "blue"))(t)
			Work()
			if _, err := h.AddRoom(ctx, "blue"); err == nil {
				t.Error("there are two blue rooms")
			}
		})
	}
}
