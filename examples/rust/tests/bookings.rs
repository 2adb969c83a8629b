#[macro_use]
mod common;
use common::{open, work};

async fn book() {
    let hotel = open().await;
    let room = hotel.add_room("blue").await.unwrap();
    let guest = hotel.add_guest("ada@example.com").await.unwrap();
    work().await;
    assert_eq!(hotel.book(room, guest, 0).await.unwrap(), 1);
}

async fn a_room_is_booked_once_a_day() {
    let hotel = open().await;
    let room = hotel.add_room("blue").await.unwrap();
    let guest = hotel.add_guest("ada@example.com").await.unwrap();
    hotel.book(room, guest, 0).await.unwrap();
    work().await;
    assert!(hotel.book(room, guest, 0).await.is_err());
    hotel.book(room, guest, 1).await.unwrap();
}

async fn invoices_are_numbered_without_gaps() {
    let mut hotel = open().await;
    let room = hotel.add_room("blue").await.unwrap();
    let guest = hotel.add_guest("ada@example.com").await.unwrap();
    for day in 0..3 {
        let booking = hotel.book(room, guest, day).await.unwrap();
        work().await;
        assert_eq!(hotel.bill(booking, 9900).await.unwrap(), 1001 + day);
    }
}

six_times!(
    book,
    a_room_is_booked_once_a_day,
    invoices_are_numbered_without_gaps
);
