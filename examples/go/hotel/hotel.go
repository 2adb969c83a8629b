// Package hotel is what the tests are about: rooms, guests, bookings, invoices.
package hotel

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrTaken says that somebody else has the room that day.
var ErrTaken = errors.New("the room is taken")

// Hotel is all of it, over one pool.
type Hotel struct{ DB *pgxpool.Pool }

func (h *Hotel) AddRoom(ctx context.Context, name string) (id int, err error) {
	err = h.DB.QueryRow(ctx, "insert into rooms (name) values ($1) returning id", name).Scan(&id)
	return
}

func (h *Hotel) AddGuest(ctx context.Context, email string) (id int, err error) {
	err = h.DB.QueryRow(ctx, "insert into guests (email) values ($1) returning id", email).Scan(&id)
	return
}

func (h *Hotel) Book(ctx context.Context, room, guest int, day time.Time) (id int, err error) {
	err = h.DB.QueryRow(ctx, "insert into bookings (room_id, guest_id, day) values ($1, $2, $3) returning id", room, guest, day).Scan(&id)
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.ConstraintName == "bookings_room_id_day_key" {
		err = ErrTaken
	}
	return
}

// Bill writes the next invoice, in one transaction.
func (h *Hotel) Bill(ctx context.Context, booking, cents int) (number int, err error) {
	err = pgx.BeginFunc(ctx, h.DB, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "select coalesce(max(number), 1000) + 1 from invoices").Scan(&number); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "insert into invoices (number, booking_id, cents) values ($1, $2, $3)", number, booking, cents)
		return err
	})
	return
}

func (h *Hotel) Count(ctx context.Context, table string) (count int, err error) {
	err = h.DB.QueryRow(ctx, "select count(*) from "+pgx.Identifier{table}.Sanitize()).Scan(&count)
	return
}
