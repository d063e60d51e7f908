//! Stories: the program as a person meets it, against a small broker over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod broker;
mod over_https;
mod place;

mod asking;
mod connecting;
mod reading;
mod signing_in;
mod terminal;
mod tokens;
mod watching;
