//! Playing asciicast version 2 in this terminal, at the pace at which it happened.
//!
//! <https://docs.asciinema.org/manual/asciicast/v2/>

use super::filter::{Allow, Filter, RESET};
use super::lines::{Lines, bad};
use crate::failure::Failure;
use crate::ui::{Ui, words};
use serde::Deserialize;
use std::io::Write as _;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// How fast, and the longest pause in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub speed: f64,
    pub idle: f64,
}

impl Pace {
    /// How long to wait between two moments of a recording. Recorded times are not to be trusted: one
    /// that goes back, or that is not a number, is no pause.
    fn pause(self, from: f64, to: f64) -> Duration {
        let seconds = (to - from).clamp(0.0, self.idle) / self.speed;
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }
}

/// Puts the terminal back however the replay ends.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        let _ =
            out.write_all(RESET.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    }
}

/// In a terminal with timing, elsewhere at once and as text.
pub async fn play(lines: &mut Lines<'_>, pace: Pace, ui: Ui) -> Result<(), Failure> {
    let header = lines.next().await?.ok_or_else(|| bad(words::NOT_ASCIICAST))?;
    match serde_json::from_str::<Header>(&header) {
        Ok(Header { version: 2 }) => {}
        _ => return Err(bad(words::NOT_ASCIICAST)),
    }
    let timed = ui.out_is_terminal;
    let _restored = timed.then(|| Restored);
    let mut filter = Filter::new(if timed { Allow::Drawing } else { Allow::Text });
    let mut last = 0.0;
    let mut due = Instant::now();
    while let Some(line) = lines.next().await? {
        let (at, kind, text): (f64, String, String) =
            serde_json::from_str(&line).map_err(|e| bad(&e.to_string()))?;
        if kind != "o" {
            continue;
        }
        if timed {
            due += pace.pause(last, at);
            last = at;
            sleep_until(due).await;
        }
        ui.data(&filter.pass(&text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_capped_sped_up_and_never_negative() {
        let pace = Pace { speed: 2.0, idle: 4.0 };
        assert_eq!(pace.pause(0.0, 1.0), Duration::from_millis(500));
        assert_eq!(pace.pause(0.0, 1e300), Duration::from_secs(2));
        assert_eq!(pace.pause(5.0, 1.0), Duration::ZERO);
        assert_eq!(pace.pause(0.0, f64::NAN), Duration::ZERO);
        assert_eq!(Pace { speed: 1e-300, idle: 1e300 }.pause(0.0, 1e300), Duration::ZERO);
    }
}
