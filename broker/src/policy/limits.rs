//! Limits that a policy sets for the sessions it permits, as annotations beside `@id` and `@description`:
//!
//! ```text
//! @idle_timeout("10m")           a terminal on which nobody types ends (s, m or h)
//! @recording_limit("200MiB")     a session that says more than this ends (MiB or GiB)
//! @channel_limit("4")            channels of one session that are open at once
//! @sessions_per_person("2")      sessions that one person has at once, wherever
//! @sessions_per_device("1")      sessions that a device has at once, whosoever
//! @keep_recordings("90d")        how long after its end what was recorded is kept (d; s, m or h to try it)
//! ```
//!
//! Where several policies permit a session, and beside the broker's configuration, the tightest counts; of
//! how long recordings are kept, the longest: what was removed too early cannot be brought back.

use cedar_policy::Policy;
use std::time::Duration;

/// Every annotation that means something. Another one is a mistake: a misspelt limit would not limit.
const KNOWN: [&str; 8] = [
    "id",
    "description",
    "idle_timeout",
    "recording_limit",
    "channel_limit",
    "sessions_per_person",
    "sessions_per_device",
    "keep_recordings",
];
const DAY: u64 = 24 * 3600;
const SHORTEST_IDLE: Duration = Duration::from_secs(1);
const LONGEST_KEPT: Duration = Duration::from_secs(36_500 * DAY);
/// Most of anything that is counted.
const MOST: u64 = 10_000;

/// What a session may at most; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Time without a keystroke, while a terminal is open.
    pub idle: Option<Duration>,
    /// Bytes of all recordings of the session together.
    pub recording_bytes: Option<u64>,
    /// Channels open at once.
    pub channels: Option<u32>,
    /// Sessions of its person at once, with this one.
    pub per_person: Option<u32>,
    /// Sessions of its device at once, with this one.
    pub per_device: Option<u32>,
    /// How long its recordings are kept after its end; `None` is as the configuration says.
    pub keep: Option<Duration>,
}

fn one_of<T>(a: Option<T>, b: Option<T>, choose: fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(choose(a, b)),
        (a, b) => a.or(b),
    }
}

impl SessionLimits {
    /// The tighter of the two, limit by limit; of what is kept, the longer.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            idle: one_of(self.idle, other.idle, Ord::min),
            recording_bytes: one_of(self.recording_bytes, other.recording_bytes, Ord::min),
            channels: one_of(self.channels, other.channels, Ord::min),
            per_person: one_of(self.per_person, other.per_person, Ord::min),
            per_device: one_of(self.per_device, other.per_device, Ord::min),
            keep: one_of(self.keep, other.keep, Ord::max),
        }
    }

    /// The limits that a policy names, or what is wrong with each of its annotations.
    pub(super) fn read(policy: &Policy) -> Result<Self, Vec<String>> {
        let mut wrong: Vec<String> = policy
            .annotations()
            .filter(|(name, _)| !KNOWN.contains(name))
            .map(|(name, _)| format!("@{name} means nothing here; known are @{}", KNOWN.join(", @")))
            .collect();
        let mut read = Reading { policy, wrong: &mut wrong };
        let limits = Self {
            idle: read.of("idle_timeout", "no time such as 90s, 10m or 1h, of at least 1s", |text| {
                duration(text, DAY).filter(|idle| *idle >= SHORTEST_IDLE)
            }),
            recording_bytes: read.of("recording_limit", "no size such as 200MiB or 2GiB", size),
            channels: read.of("channel_limit", COUNT, count),
            per_person: read.of("sessions_per_person", COUNT, count),
            per_device: read.of("sessions_per_device", COUNT, count),
            keep: read.of("keep_recordings", "no time such as 30d or 365d", |text| {
                duration(text, LONGEST_KEPT.as_secs()).filter(|kept| !kept.is_zero())
            }),
        };
        if wrong.is_empty() { Ok(limits) } else { Err(wrong) }
    }
}

const COUNT: &str = "no number from 1 to 10000";

struct Reading<'p> {
    policy: &'p Policy,
    wrong: &'p mut Vec<String>,
}

impl Reading<'_> {
    /// The annotation's value, if it has one; a mistake, if that does not read.
    fn of<T>(&mut self, name: &str, otherwise: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.policy.annotation(name)?;
        let value = read(text);
        if value.is_none() {
            self.wrong.push(format!("@{name}({text:?}) is {otherwise}"));
        }
        value
    }
}

/// A number directly followed by one of `units`.
fn number_of(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn duration(text: &str, longest_s: u64) -> Option<Duration> {
    let seconds = number_of(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", DAY)])?;
    (seconds <= longest_s).then(|| Duration::from_secs(seconds))
}

fn size(text: &str) -> Option<u64> {
    number_of(text, &[("MiB", 1 << 20), ("GiB", 1 << 30)]).filter(|bytes| *bytes > 0)
}

fn count(text: &str) -> Option<u32> {
    text.parse().ok().filter(|count| (1..=MOST).contains(count)).and_then(|count| u32::try_from(count).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr as _;

    fn read(annotations: &str) -> Result<SessionLimits, Vec<String>> {
        let text =
            format!("@id(\"x\") @description(\"y\") {annotations} permit (principal, action, resource);");
        SessionLimits::read(&Policy::from_str(&text).unwrap())
    }

    #[test]
    fn annotations_name_limits() {
        assert_eq!(read(""), Ok(SessionLimits::default()));
        let both = read("@idle_timeout(\"10m\") @recording_limit(\"2GiB\")").unwrap();
        assert_eq!(both.idle, Some(Duration::from_mins(10)));
        assert_eq!(both.recording_bytes, Some(2 << 30));
        let counts = "@channel_limit(\"4\") @sessions_per_person(\"2\") @sessions_per_device(\"1\")";
        let counts = read(counts).unwrap();
        assert_eq!((counts.channels, counts.per_person, counts.per_device), (Some(4), Some(2), Some(1)));
        let kept = read("@keep_recordings(\"90d\")").unwrap().keep;
        assert_eq!(kept, Some(Duration::from_hours(90 * 24)));
    }

    #[test]
    fn an_annotation_that_says_nothing_is_a_mistake_and_not_no_limit() {
        for bad in [
            "@idle_timeout(\"ten\")",
            "@idle_timeout(\"0s\")",
            "@idle_timeout(\"99h\")",
            "@idle_timeout",
            "@recording_limit(\"5\")",
            "@recording_limit(\"0MiB\")",
            "@recording_limit(\"99999999999999GiB\")",
            "@idle_timout(\"10m\")",
            "@channel_limit(\"0\")",
            "@channel_limit(\"four\")",
            "@sessions_per_person(\"-1\")",
            "@sessions_per_device(\"10001\")",
            "@keep_recordings(\"0d\")",
            "@keep_recordings(\"forever\")",
            "@keep_recordings(\"99999d\")",
        ] {
            assert_eq!(read(bad).unwrap_err().len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_tightest_limit_counts() {
        let some = SessionLimits {
            idle: Some(Duration::from_mins(5)),
            channels: Some(4),
            keep: Some(Duration::from_hours(1)),
            ..SessionLimits::default()
        };
        let other = SessionLimits {
            idle: Some(Duration::from_mins(9)),
            recording_bytes: Some(7),
            channels: Some(3),
            per_device: Some(1),
            keep: Some(Duration::from_hours(2)),
            ..SessionLimits::default()
        };
        let both = SessionLimits {
            idle: Some(Duration::from_mins(5)),
            // What is kept is kept for the longest that anybody asks for.
            ..other
        };
        assert_eq!((some.and(other), other.and(some)), (both, both));
        assert_eq!(both.and(SessionLimits::default()), both);
    }
}
