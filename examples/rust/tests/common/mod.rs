//! Opens the hotel for tests.
#![allow(dead_code)]

#[path = "../pg_harness/mod.rs"]
mod pg_harness;

use hotel::Hotel;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// A hotel of the test's own; its database is given back with it.
pub struct Own {
    hotel: Hotel,
    lease: Option<pg_harness::Lease>,
}

pub async fn open() -> Own {
    if std::env::var("SHARED").is_ok() {
        // What the README compares with: all tests share one database, and each cleans it first.
        let hotel = Hotel::open(&std::env::var("DATABASE_URL").unwrap())
            .await
            .unwrap();
        hotel
            .run("truncate rooms, guests, bookings, invoices restart identity cascade")
            .await
            .unwrap();
        return Own { hotel, lease: None };
    }
    let lease = pg_harness::lease();
    Own {
        hotel: Hotel::open(lease.url()).await.unwrap(),
        lease: Some(lease),
    }
}

/// Each of these functions as six tests, which run at once.
macro_rules! six_times {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[tokio::test] async fn one() { super::$name().await }
            #[tokio::test] async fn two() { super::$name().await }
            #[tokio::test] async fn three() { super::$name().await }
            #[tokio::test] async fn four() { super::$name().await }
            #[tokio::test] async fn five() { super::$name().await }
            #[tokio::test] async fn six() { super::$name().await }
        })*
    };
}

/// As long as what a real application does besides.
pub async fn work() {
    tokio::time::sleep(Duration::from_millis(40)).await;
}

impl Own {
    /// The rows that are there are what `again` comes back to.
    pub fn keep(&self) {
        if let Some(lease) = &self.lease {
            lease.mark().unwrap();
        }
    }

    pub async fn again(&self) {
        match &self.lease {
            Some(lease) => lease.reset().unwrap(),
            None => self
                .run("delete from guests where email = 'ada@example.com'")
                .await
                .unwrap(),
        }
    }
}

impl Deref for Own {
    type Target = Hotel;
    fn deref(&self) -> &Hotel {
        &self.hotel
    }
}

impl DerefMut for Own {
    fn deref_mut(&mut self) -> &mut Hotel {
        &mut self.hotel
    }
}
