//! How often somebody may try.

use crate::clock::Clock;
use daypass_protocol::time::Timestamp;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Keys that are remembered at most; what it costs is about a megabyte.
const MAX_KEYS: usize = 10_000;

/// So many in each window, for each key.
#[derive(Debug)]
pub struct Limit {
    most: u32,
    window: Duration,
    seen: Mutex<HashMap<String, Count>>,
}

#[derive(Debug)]
struct Count {
    since: Timestamp,
    number: u32,
}

impl Limit {
    pub fn new(most: u32, window: Duration) -> Self {
        Self { most, window, seen: Mutex::default() }
    }

    /// Counts one more, and says whether that is still within the limit.
    #[must_use]
    pub fn allow(&self, clock: &Clock, key: &str) -> bool {
        let now = clock.now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains_key(key) && seen.len() >= MAX_KEYS {
            seen.retain(|_, count| count.since + self.window > now);
            // Full of the living: whoever fills it from ten thousand places does not get more tries.
            if seen.len() >= MAX_KEYS {
                return false;
            }
        }
        let count = seen.entry(key.to_owned()).or_insert(Count { since: now, number: 0 });
        if count.since + self.window <= now {
            *count = Count { since: now, number: 0 };
        }
        count.number = count.number.saturating_add(1);
        count.number <= self.most
    }
}

/// How many refusals of strangers go into the audit log: of each network, and of all together.
#[derive(Debug)]
pub struct Strangers {
    each: Limit,
    all: Limit,
}

impl Default for Strangers {
    fn default() -> Self {
        let minute = Duration::from_mins(1);
        Self { each: Limit::new(20, minute), all: Limit::new(120, minute) }
    }
}

impl Strangers {
    /// Counts one more of this address.
    #[must_use]
    pub fn may_enter(&self, clock: &Clock, source: IpAddr) -> bool {
        self.each.allow(clock, &network(source)) && self.all.allow(clock, "all")
    }
}

/// Whom an address counts as: an IPv6 network of 64 bits is one customer.
pub fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_each_key_and_starts_anew_with_the_window() {
        let clock = Clock::fixed(Timestamp(0));
        let limit = Limit::new(2, Duration::from_mins(1));
        assert!(limit.allow(&clock, "a"));
        assert!(limit.allow(&clock, "a"));
        assert!(!limit.allow(&clock, "a"));
        assert!(limit.allow(&clock, "b"));
        clock.set(Timestamp(60_000));
        assert!(limit.allow(&clock, "a"));
    }

    #[test]
    fn strangers_of_one_network_and_of_many_do_not_fill_the_log() {
        let clock = Clock::fixed(Timestamp(0));
        let strangers = Strangers::default();
        let entered = |from: u32, to: u32, clock: &Clock| {
            (from..to)
                .filter(|n| strangers.may_enter(clock, IpAddr::from([10, 0, 0, u8::try_from(*n).unwrap()])))
                .count()
        };
        assert_eq!((0..1000).filter(|_| strangers.may_enter(&clock, [192, 0, 2, 1].into())).count(), 20);
        assert_eq!(entered(0, 250, &clock), 100, "with those of before, as many as of all");
        clock.set(Timestamp(60_000));
        assert_eq!(entered(0, 3, &clock), 3);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let clock = Clock::fixed(Timestamp(0));
        let limit = Limit::new(1, Duration::from_mins(1));
        for n in 0..MAX_KEYS {
            assert!(limit.allow(&clock, &n.to_string()));
        }
        assert!(!limit.allow(&clock, "one more"));
        clock.set(Timestamp(60_000));
        assert!(limit.allow(&clock, "one more"));
        assert!(limit.seen.lock().unwrap().len() <= MAX_KEYS);
    }

    #[test]
    fn neighbours_in_an_ipv6_network_count_as_one() {
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff".parse().unwrap()));
        assert_ne!(network("2001:db8::1".parse().unwrap()), network("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1");
    }
}
