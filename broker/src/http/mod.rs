//! What the broker's HTTP handlers share.

pub mod page;
pub mod problem;

pub use problem::Problem;
