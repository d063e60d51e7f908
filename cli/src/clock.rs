//! The one place that reads the clock. Everything else is given the time.

use daypass_protocol::time::Timestamp;
use std::time::SystemTime;

#[allow(clippy::disallowed_methods, reason = "this is the clock that the rest of the program is given")]
pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
