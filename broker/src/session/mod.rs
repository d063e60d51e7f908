//! Sessions: one connection of one person to one device under one grant.

mod permit;
pub mod wire;

pub use permit::Permit;
