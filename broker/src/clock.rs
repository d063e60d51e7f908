//! The one place where the broker reads the time of day.

use daypass_protocol::time::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// The time of day; in tests, a time that the test moves.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `at` until [`Clock::set`].
    pub fn fixed(at: Timestamp) -> Self {
        Self(Source::Fixed(Arc::new(AtomicI64::new(at.as_millis()))))
    }

    /// Moves a fixed clock, and all its clones; the system's clock is not ours to move.
    pub fn set(&self, at: Timestamp) {
        if let Source::Fixed(ms) = &self.0 {
            ms.store(at.as_millis(), Ordering::SeqCst);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else is told to use")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => std::time::SystemTime::now().into(),
            Source::Fixed(ms) => Timestamp::from_millis(ms.load(Ordering::SeqCst)),
        }
    }
}
