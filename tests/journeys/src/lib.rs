//! What the journeys stand on: a demonstration that a test starts and ends, its people's command lines,
//! the real OpenSSH client, devices of a test's own, and the evidence that is left.
//!
//! Nothing here is a stand-in. Programs are found by `DAYPASS_TEST_PROGRAMS`, or beside the tests in the
//! target folder.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is tests: what goes wrong here is a failed test"
)]

mod chance;
mod database;
mod device;
mod disk;
mod evidence;
mod forward_proxy;
mod place;
mod process;
mod program;
mod proxy;
mod service;
mod world;

pub use chance::Chance;
pub use database::{Cluster, Held, Lock, Postgres};
pub use device::{Device, configure, join_token, shim_enrol};
pub use disk::SmallDisk;
pub use evidence::{flip_one_bit, recordings_of, shown};
pub use forward_proxy::ForwardProxy;
pub use place::{Place, content, sha256};
pub use process::{alive, children_of, marker, sleepers};
pub use program::{Done, Program};
pub use proxy::Proxy;
pub use service::service;
pub use world::{World, programs};

use std::time::{Duration, Instant};

/// How long a condition is waited for: generous, because the machine may be slow and busy.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `found` has an answer; fails the test, saying `what`, if it never does.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = found() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "still waiting for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}
