//! Trusted time, `TUNNEL.md` section 8.
//!
//! The wall clock of a device is wrong after a power cut and can be set by whoever holds the device, so
//! it is never read here. Trusted time starts at the greatest of build time and stored time, moves on with
//! a clock that only counts (`CLOCK_BOOTTIME`: it also counts while the device sleeps), jumps forward when
//! the broker signs a later time, and never goes back.

use daypass_protocol::time::Timestamp;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// When this program was built.
pub fn build_time() -> Timestamp {
    Timestamp::from_secs(env!("DAYPASS_BUILD_TIME").parse().unwrap_or(0))
}

/// Time since the device started, sleep included.
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The one clock of the shim. The counter is passed in, so that tests can let years pass.
pub struct Clock {
    counter: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Trusted time was this much when the counter stood at that.
    anchor: Mutex<(Timestamp, Duration)>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl Clock {
    /// A clock that starts at `stored` or the build time, whichever is later.
    pub fn new(stored: Timestamp, counter: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let anchor = Mutex::new((stored.max(build_time()), counter()));
        Self { counter: Box::new(counter), anchor }
    }

    pub fn now(&self) -> Timestamp {
        let (at, count) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        at + (self.counter)().saturating_sub(count)
    }

    /// Learns a time that was proven: signed by the broker, or the start of an accepted certificate.
    pub fn learn(&self, proven: Timestamp) {
        if proven > self.now() {
            let count = (self.counter)();
            *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = (proven, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn clock(stored: Timestamp) -> (Clock, Arc<AtomicU64>) {
        let secs = Arc::new(AtomicU64::new(50));
        let counter = Arc::clone(&secs);
        (Clock::new(stored, move || Duration::from_secs(counter.load(Ordering::SeqCst))), secs)
    }

    #[test]
    fn trusted_time_starts_no_earlier_than_the_build_and_what_was_stored() {
        assert_eq!(clock(Timestamp(0)).0.now(), build_time());
        let later = build_time() + Duration::from_secs(1000);
        assert_eq!(clock(later).0.now(), later);
    }

    #[test]
    fn trusted_time_goes_on_and_never_back() {
        let (clock, secs) = clock(Timestamp(0));
        let broker = build_time() + Duration::from_secs(5000);
        clock.learn(broker);
        assert_eq!(clock.now(), broker);
        secs.fetch_add(60, Ordering::SeqCst);
        assert_eq!(clock.now(), broker + Duration::from_mins(1));
        clock.learn(broker + Duration::from_secs(10));
        assert_eq!(clock.now(), broker + Duration::from_mins(1), "an older time changes nothing");
        secs.store(0, Ordering::SeqCst);
        assert_eq!(clock.now(), broker, "a counter that breaks does not take it below what was proven");
    }
}
