//! What the tests are about: rooms, guests, bookings, invoices, over one connection.

use tokio_postgres::{Client, Error, NoTls};

pub struct Hotel {
    client: Client,
}

impl Hotel {
    pub async fn open(url: &str) -> Result<Hotel, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        Ok(Hotel { client })
    }

    pub async fn add_room(&self, name: &str) -> Result<i32, Error> {
        Ok(self
            .client
            .query_one(
                "insert into rooms (name) values ($1) returning id",
                &[&name],
            )
            .await?
            .get(0))
    }

    pub async fn add_guest(&self, email: &str) -> Result<i32, Error> {
        Ok(self
            .client
            .query_one(
                "insert into guests (email) values ($1) returning id",
                &[&email],
            )
            .await?
            .get(0))
    }

    pub async fn book(&self, room: i32, guest: i32, day: i32) -> Result<i32, Error> {
        let statement = "insert into bookings (room_id, guest_id, day) values ($1, $2, date '2026-06-01' + $3::int) returning id";
        Ok(self
            .client
            .query_one(statement, &[&room, &guest, &day])
            .await?
            .get(0))
    }

    /// Writes the next invoice, in one transaction.
    pub async fn bill(&mut self, booking: i32, cents: i32) -> Result<i32, Error> {
        let transaction = self.client.transaction().await?;
        let number: i32 = transaction
            .query_one("select coalesce(max(number), 1000) + 1 from invoices", &[])
            .await?
            .get(0);
        let statement = "insert into invoices (number, booking_id, cents) values ($1, $2, $3)";
        transaction
            .execute(statement, &[&number, &booking, &cents])
            .await?;
        transaction.commit().await?;
        Ok(number)
    }

    pub async fn count(&self, table: &str) -> Result<i64, Error> {
        Ok(self
            .client
            .query_one(&format!("select count(*) from {table}"), &[])
            .await?
            .get(0))
    }

    pub async fn run(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }
}
