//! The HTTPS port: accept loop, routes, errors, and what the handlers share.

pub mod connection;
pub mod console;
mod description;
pub mod json;
mod me;
pub mod ops;
pub mod page;
pub mod parameters;
pub mod problem;
pub mod router;
pub mod server;
mod ssh;

pub use problem::Problem;
