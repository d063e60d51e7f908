//! Durations as people write them: `30m`, `2h`, `90s`, `1h30m`, `1d`.

use std::fmt::Write as _;
use std::str::FromStr;

/// Whole seconds, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a duration is written like 30m, 2h, 90s or 1h30m")]
pub struct NotADuration;

impl FromStr for Seconds {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let mut total = 0u64;
        let mut rest = text.trim();
        while !rest.is_empty() {
            let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or(NotADuration)?;
            let count: u64 = rest[..unit_at].parse().map_err(|_| NotADuration)?;
            let mut tail = rest[unit_at..].chars();
            let unit = match tail.next() {
                Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3600,
                Some('d') => 86_400,
                _ => return Err(NotADuration),
            };
            total = count.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or(NotADuration)?;
            rest = tail.as_str();
        }
        if total == 0 { Err(NotADuration) } else { Ok(Self(total)) }
    }
}

/// The two largest units that are not zero: `1h 30m`, `45s`. Rounds down.
pub fn spoken(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let mut text = String::new();
    for (count, unit) in parts.into_iter().skip_while(|(count, _)| *count == 0).take(2) {
        if count > 0 {
            let gap = if text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{gap}{count}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, seconds) in [("30m", 1800), ("2h", 7200), ("90s", 90), ("1h30m", 5400), ("1d", 86_400)] {
            assert_eq!(text.parse(), Ok(Seconds(seconds)), "{text}");
        }
        for bad in
            ["", "0m", "30", "m", "-5m", "1.5h", "5 m", "5w", "99999999999999999999s", "999999999999999999h"]
        {
            assert_eq!(bad.parse::<Seconds>(), Err(NotADuration), "{bad}");
        }
    }

    #[test]
    fn durations_are_spoken_in_two_units() {
        for (seconds, text) in
            [(0, "0s"), (45, "45s"), (60, "1m"), (5400, "1h 30m"), (3605, "1h"), (90_061, "1d 1h")]
        {
            assert_eq!(spoken(seconds), text);
        }
    }
}
