//! The gateway with the real OpenSSH client, a raw SSH client, and a door whose sessions run small
//! programs in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod flow;
mod forwards;
mod refusals;
mod sessions;
mod tickets;
mod trust;
mod world;
