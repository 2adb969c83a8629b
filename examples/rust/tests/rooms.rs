#[macro_use]
mod common;
use common::{open, work};

async fn the_first_room_is_number_one() {
    let hotel = open().await;
    assert_eq!(hotel.add_room("blue").await.unwrap(), 1);
    work().await;
    assert_eq!(hotel.count("rooms").await.unwrap(), 1);
}

async fn two_rooms_of_one_name_are_refused() {
    let hotel = open().await;
    hotel.add_room("blue").await.unwrap();
    work().await;
    assert!(hotel.add_room("blue").await.is_err());
    assert_eq!(hotel.count("rooms").await.unwrap(), 1);
}

six_times!(
    the_first_room_is_number_one,
    two_rooms_of_one_name_are_refused
);
