//! When to connect again, and how often to ask whether the link lives. Pure: randomness is passed in.

use std::time::Duration;

/// Full-jitter exponential backoff: a fleet that lost its broker must not return in one wave.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max: max.max(first), attempt: 0 }
    }

    /// How long to wait before the next try; `random` is uniform over all of `u32`.
    pub fn next(&mut self, random: u32) -> Duration {
        let bound =
            self.first.saturating_mul(1u32.checked_shl(self.attempt).unwrap_or(u32::MAX)).min(self.max);
        self.attempt = (self.attempt + 1).min(31);
        bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// After a tunnel that lasted: start over, so that the first retry is quick.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Shortest keepalive this shim uses; networks that forget a flow sooner are not known.
const MIN_KEEPALIVE: Duration = Duration::from_secs(30);

/// How long a link may be silent before it is asked. Some carriers forget an idle flow after a minute, most
/// after five; each ping costs data and battery. So it starts long and is halved when an idle link dies.
#[derive(Clone, Debug)]
pub struct Keepalive {
    start: Duration,
    current: Duration,
}

impl Keepalive {
    pub fn new(start: Duration) -> Self {
        Self { start, current: start }
    }

    pub fn current(&self) -> Duration {
        self.current
    }

    /// A ping after a silent keepalive time went unanswered: the flow had been forgotten.
    pub fn link_died_idle(&mut self) {
        self.current = (self.current / 2).max(MIN_KEEPALIVE.min(self.start));
    }

    /// A link lasted a day: perhaps another network now; try longer again.
    pub fn link_lasted(&mut self) {
        self.current = (self.current * 2).min(self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over_after_success() {
        let secs = Duration::from_secs;
        let mut backoff = Backoff::new(secs(1), secs(300));
        let bounds: Vec<_> = (0..40).map(|_| backoff.next(u32::MAX)).collect();
        assert_eq!(&bounds[..4], &[secs(1), secs(2), secs(4), secs(8)]);
        assert_eq!(bounds[39], secs(300));
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), secs(1));
    }

    #[test]
    fn the_whole_range_below_the_bound_is_used() {
        let mut backoff = Backoff::new(Duration::from_secs(8), Duration::from_secs(8));
        assert_eq!(backoff.next(0), Duration::ZERO);
        assert!(backoff.next(u32::MAX / 2) < Duration::from_secs(4));
    }

    #[test]
    fn a_fleet_that_lost_its_broker_returns_spread_over_the_whole_wait() {
        const FLEET: u32 = 10_000;
        for tries in 1..=12 {
            let bound = Duration::from_secs(1 << (tries - 1)).min(Duration::from_mins(5));
            let mut tenths = [0_u32; 10];
            for device in 0..FLEET {
                let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(5));
                // Whatever was drawn before has no say in the bound.
                for earlier in 1..tries {
                    backoff.next(device.wrapping_mul(earlier));
                }
                let wait = backoff.next(device.wrapping_mul(2_654_435_761));
                assert!(wait <= bound, "{wait:?} of at most {bound:?}");
                let tenth = (wait.as_secs_f64() / bound.as_secs_f64() * 10.0).floor();
                tenths[(0..9).find(|n| tenth <= f64::from(*n)).map_or(9, |n| usize::try_from(n).unwrap())] +=
                    1;
            }
            assert!(
                tenths.iter().all(|count| (FLEET / 20..FLEET / 5).contains(count)),
                "try {tries}: {tenths:?}"
            );
        }
    }

    #[test]
    fn keepalive_shortens_when_idle_links_die_and_recovers() {
        let mut keepalive = Keepalive::new(Duration::from_mins(4));
        for _ in 0..10 {
            keepalive.link_died_idle();
        }
        assert_eq!(keepalive.current(), MIN_KEEPALIVE);
        for _ in 0..10 {
            keepalive.link_lasted();
        }
        assert_eq!(keepalive.current(), Duration::from_mins(4));
    }
}
