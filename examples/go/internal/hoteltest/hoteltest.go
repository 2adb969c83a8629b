// Package hoteltest opens the hotel for tests.
package hoteltest

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"example.com/hotel/hotel"
	"example.com/hotel/internal/testdb"
	"github.com/jackc/pgx/v5/pgxpool"
)

// One pool for the process; it stays connected from test to test.
var pool = sync.OnceValues(func() (*pgxpool.Pool, error) {
	return pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
})

// Open is an empty hotel, for tests one after the other.
func Open(t *testing.T) *hotel.Hotel {
	t.Helper()
	if shared() {
		return shareOne(t)
	}
	testdb.Reset(t)
	opened, err := pool()
	if err != nil {
		t.Fatal(err)
	}
	return &hotel.Hotel{DB: opened}
}

// Keep makes the rows that are there what OpenAgain comes back to, until t ends.
func Keep(t *testing.T) {
	t.Helper()
	if !shared() {
		testdb.Mark(t)
	}
}

// OpenAgain is the hotel with the rows of Keep.
func OpenAgain(t *testing.T) *hotel.Hotel {
	t.Helper()
	if !shared() {
		return Open(t)
	}
	opened, err := pool()
	if err == nil {
		_, err = opened.Exec(context.Background(), "delete from guests where email = 'ada@example.com'")
	}
	if err != nil {
		t.Fatal(err)
	}
	return &hotel.Hotel{DB: opened}
}

// OpenOwn is one for tests under t.Parallel.
func OpenOwn(t *testing.T) *hotel.Hotel {
	t.Helper()
	if shared() {
		return shareOne(t)
	}
	opened, err := pgxpool.New(context.Background(), testdb.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	return &hotel.Hotel{DB: opened}
}

// What the README compares with: all share one database, and each test cleans it first.
func shared() bool { return os.Getenv("SHARED") != "" }

func shareOne(t *testing.T) *hotel.Hotel {
	t.Helper()
	opened, err := pool()
	if err == nil {
		_, err = opened.Exec(context.Background(), "truncate rooms, guests, bookings, invoices restart identity cascade")
	}
	if err != nil {
		t.Fatal(err)
	}
	return &hotel.Hotel{DB: opened}
}

// Day is a day of the calendar that all tests use.
func Day(n int) time.Time { return time.Date(2026, 6, n, 0, 0, 0, 0, time.UTC) }

// Work takes as long as what a real application does besides.
func Work() { time.Sleep(40 * time.Millisecond) }

// Must is a value that came without an error.
func Must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
