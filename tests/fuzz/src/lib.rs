//! What reads bytes from strangers, each as one function of bytes that panics when something does not hold
//! that must hold whatever was sent.
//!
//! `libfuzzer/` hands them inputs of its own making (`tests/fuzz/run`), the test beside this the seeds that
//! were kept. The modules of broker and shim are taken in as files: each of them is pure and uses no other
//! module of its program, so what is fuzzed is the very source, without 500 dependencies to instrument.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a target says that something does not hold"
)]
#![forbid(unsafe_code)]

mod certificate;
mod frame;
mod hello;
mod input;
pub mod programs;
mod sftp;

pub use certificate::certificate;
pub use frame::frame;
pub use hello::hello;
pub use sftp::sftp;
