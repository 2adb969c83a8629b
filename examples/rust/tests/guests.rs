#[macro_use]
mod common;
use common::{open, work};

async fn a_guest_comes_for_the_first_time() {
    let hotel = open().await;
    assert_eq!(hotel.add_guest("ada@example.com").await.unwrap(), 1);
    work().await;
    assert_eq!(hotel.count("guests").await.unwrap(), 1);
}

/// Rows that several steps begin with are made once.
async fn a_hundred_guests_and_one_more() {
    let hotel = open().await;
    for n in 0..100 {
        hotel
            .add_guest(&format!("guest{n}@example.com"))
            .await
            .unwrap();
    }
    hotel.keep();
    for _ in 0..3 {
        hotel.again().await;
        hotel.add_guest("ada@example.com").await.unwrap();
        work().await;
        assert_eq!(hotel.count("guests").await.unwrap(), 101);
    }
}

six_times!(
    a_guest_comes_for_the_first_time,
    a_hundred_guests_and_one_more
);
