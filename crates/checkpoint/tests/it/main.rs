//! The room's tests on real folders: round trips, crashes at every operation, damage, hostile
//! files.

mod common;
mod crash;
mod damage;
mod hostile;
mod round_trip;
mod store;
