//! What the broker's HTTP handlers share.

pub mod connection;
pub mod page;
pub mod problem;

pub use problem::Problem;
