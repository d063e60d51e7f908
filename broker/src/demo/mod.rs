//! What the demonstration needs and no real broker has. `serve` never comes here.

pub mod idp;
