//! Limits that a policy sets for the sessions it permits, as annotations beside `@id` and `@description`:
//!
//! ```text
//! @idle_timeout("10m")          a terminal on which nobody types ends (s, m or h)
//! @recording_limit("200MiB")    a session that says more than this ends (MiB or GiB)
//! ```
//!
//! Where several policies permit a session, and beside the broker's configuration, the tightest counts.

use cedar_policy::Policy;
use std::time::Duration;

/// Every annotation that means something. Another one is a mistake: a misspelt limit would not limit.
const KNOWN: [&str; 4] = ["id", "description", "idle_timeout", "recording_limit"];
const SHORTEST_IDLE: Duration = Duration::from_secs(1);

/// What a session may at most; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Time without a keystroke, while a terminal is open.
    pub idle: Option<Duration>,
    /// Bytes of all recordings of the session together.
    pub recording_bytes: Option<u64>,
}

impl SessionLimits {
    /// The tighter of the two, limit by limit.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Self {
            idle: least(self.idle, other.idle),
            recording_bytes: least(self.recording_bytes, other.recording_bytes),
        }
    }

    /// The limits that a policy names, or what is wrong with each of its annotations.
    pub(super) fn read(policy: &Policy) -> Result<Self, Vec<String>> {
        let mut wrong: Vec<String> = policy
            .annotations()
            .filter(|(name, _)| !KNOWN.contains(name))
            .map(|(name, _)| format!("@{name} means nothing here; known are @{}", KNOWN.join(", @")))
            .collect();
        let mut limits = Self::default();
        if let Some(text) = policy.annotation("idle_timeout") {
            limits.idle = duration(text).filter(|idle| *idle >= SHORTEST_IDLE);
            if limits.idle.is_none() {
                wrong.push(format!(
                    "@idle_timeout({text:?}) is no time such as 90s, 10m or 1h, of at least 1s"
                ));
            }
        }
        if let Some(text) = policy.annotation("recording_limit") {
            limits.recording_bytes = size(text).filter(|bytes| *bytes > 0);
            if limits.recording_bytes.is_none() {
                wrong.push(format!("@recording_limit({text:?}) is no size such as 200MiB or 2GiB"));
            }
        }
        if wrong.is_empty() { Ok(limits) } else { Err(wrong) }
    }
}

/// A number directly followed by one of `units`.
fn number_of(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn duration(text: &str) -> Option<Duration> {
    let day = 24 * 3600;
    let seconds = number_of(text, &[("s", 1), ("m", 60), ("h", 3600)])?;
    (seconds <= day).then(|| Duration::from_secs(seconds))
}

fn size(text: &str) -> Option<u64> {
    number_of(text, &[("MiB", 1 << 20), ("GiB", 1 << 30)])
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
        ] {
            assert_eq!(read(bad).unwrap_err().len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_tightest_limit_counts() {
        let some = SessionLimits { idle: Some(Duration::from_mins(5)), recording_bytes: None };
        let other = SessionLimits { idle: Some(Duration::from_mins(9)), recording_bytes: Some(7) };
        let both = SessionLimits { idle: Some(Duration::from_mins(5)), recording_bytes: Some(7) };
        assert_eq!((some.and(other), other.and(some)), (both, both));
        assert_eq!(both.and(SessionLimits::default()), both);
    }
}
