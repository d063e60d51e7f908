//! The live line while a request waits: one line that is drawn over on a terminal, said once elsewhere.

use super::{Colour, Ui, coloured, words};
use daypass_protocol::api::Request;
use daypass_protocol::time::Timestamp;
use std::io::{self, Write as _};
use unicode_width::UnicodeWidthStr as _;

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
        let line = words::waits_for(request);
        if self.ui.err_is_terminal {
            let times =
                words::waited(&line, self.since.until(now).as_secs(), now.until(request.lapses_at).as_secs());
            let text = coloured(&fitted(times), Colour::Waiting, self.ui.colours_err());
            let mut err = io::stderr().lock();
            // A line that cannot be drawn changes nothing about what is waited for.
            let _ = write!(err, "\r\x1b[K{text}");
            let _ = err.flush();
            self.said = Some(line);
        } else if self.said.as_ref() != Some(&line) {
            self.ui.note(&line);
            self.said = Some(line);
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

/// A line that wraps could not be drawn over.
fn fitted(mut line: String) -> String {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
    let columns = columns.max(20) - 1;
    if line.width() > columns {
        while line.width() >= columns && line.pop().is_some() {}
        line.push('…');
    }
    line
}
