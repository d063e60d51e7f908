//! Playing asciicast version 2 in this terminal, at the pace at which it happened.
//!
//! <https://docs.asciinema.org/manual/asciicast/v2/>

use super::filter::{Allow, Filter};
use super::lines::{Lines, bad};
use crate::failure::Failure;
use crate::ui::{Ui, words};
use serde::Deserialize;
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

/// What a recording shows, in this terminal, which is put back at the end; elsewhere as text.
pub struct Screen {
    ui: Ui,
    filter: Filter,
    drawn: bool,
}

/// Puts the terminal back however the replay ends.
impl Drop for Screen {
    fn drop(&mut self) {
        if self.drawn {
            // A terminal that is gone needs nothing put back.
            let _ = self.ui.data_line(&self.filter.reset());
        }
    }
}

impl Screen {
    /// Of a recording that begins with this line.
    pub fn begin(header: &str, ui: &Ui) -> Result<Self, Failure> {
        match serde_json::from_str::<Header>(header) {
            Ok(Header { version: 2 }) => {}
            _ => return Err(bad(words::NOT_ASCIICAST)),
        }
        let drawn = ui.out_is_terminal;
        let filter = Filter::new(if drawn { Allow::Drawing } else { Allow::Text });
        Ok(Self { ui: ui.clone(), filter, drawn })
    }

    /// Shows what harmless part there is in it.
    pub fn show(&mut self, text: &str) -> Result<(), Failure> {
        self.ui.data(&self.filter.pass(text))
    }
}

/// When, and what was shown; `None` of what is no output.
pub fn output(line: &str) -> Result<Option<(f64, String)>, Failure> {
    let (at, kind, text): (f64, String, String) =
        serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
    Ok((kind == "o").then_some((at, text)))
}

/// In a terminal with timing, elsewhere at once and as text.
pub async fn play(lines: &mut Lines<'_>, pace: Pace, ui: &Ui) -> Result<(), Failure> {
    let header = lines.next().await?.ok_or_else(|| bad(words::NOT_ASCIICAST))?;
    let mut screen = Screen::begin(&header, ui)?;
    let mut last = 0.0;
    let mut due = Instant::now();
    while let Some(line) = lines.next().await? {
        let Some((at, text)) = output(&line)? else { continue };
        if ui.out_is_terminal {
            due += pace.pause(last, at);
            last = at;
            sleep_until(due).await;
        }
        screen.show(&text)?;
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
