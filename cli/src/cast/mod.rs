//! Recordings, played. What is in them was on a device's screen and is not to be trusted.

pub mod files;
pub mod filter;
pub mod lines;
pub mod output;
pub mod terminal;
