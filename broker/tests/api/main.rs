//! The HTTP API of a whole broker, over TLS: who may what, what is refused and in which words, and that
//! its description is true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod denial;
mod description;
mod hygiene;
mod requests;
mod sign_in;
mod world;
