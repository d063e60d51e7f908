//! Sessions: one connection of one person to one device under one grant.

pub mod wire;
