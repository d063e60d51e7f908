//! The live line while a request waits: what it waits for is said once, and below it, on a terminal, a
//! line of times is drawn over and over.

use super::{Colour, Ui, coloured};
use daypass_protocol::api::Request;
use daypass_protocol::said;
use daypass_protocol::time::Timestamp;
use std::io::{self, Write as _};

#[derive(Debug)]
pub struct Waiting {
    ui: Ui,
    since: Timestamp,
    said: Option<String>,
}

impl Waiting {
    pub fn new(ui: Ui, now: Timestamp) -> Self {
        Self { ui, since: now, said: None }
    }

    pub fn draw(&mut self, request: &Request, now: Timestamp) {
        // Who can answer stands in full above the line, however narrow the terminal is.
        let line = said::waits_for(request);
        if self.said.as_ref() != Some(&line) {
            self.note(&line);
            self.said = Some(line);
        }
        if self.ui.err_is_terminal {
            let times = said::waited(self.since.until(now).as_secs(), now.until(request.lapses_at).as_secs());
            let text = coloured(&times, Colour::Waiting, self.ui.colours_err());
            let mut err = io::stderr().lock();
            // A line that cannot be drawn changes nothing about what is waited for.
            let _ = write!(err, "\r\x1b[K{text}");
            let _ = err.flush();
        }
    }

    /// Says something above the line.
    pub fn note(&mut self, text: &str) {
        self.clear();
        self.ui.note(text);
    }

    fn clear(&mut self) {
        if self.ui.err_is_terminal && self.said.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}
