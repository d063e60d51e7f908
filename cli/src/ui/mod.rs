//! Everything that a person sees. Data goes to standard output, all else to standard error.

pub mod failures;
pub mod show;
pub mod table;
pub mod waiting;
pub mod watching;
pub mod words;

use crate::failure::Failure;
use crate::profile::ProfileName;
use daypass_protocol::text::{is_hidden, made_visible};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

/// Longest text of the broker's that is shown in one place.
const MAX_SHOWN: usize = 4000;
/// Longest line that is read from a person.
const MAX_TYPED: u64 = 64 << 10;

/// Text from elsewhere, as it can be shown: nothing in it moves the cursor, reorders or hides.
pub fn clean(text: &str) -> String {
    made_visible(text, MAX_SHOWN)
}

/// Where output goes, what it may look like, and how this program was called.
#[derive(Clone, Debug)]
pub struct Ui {
    /// What stands between `daypass` and the verb in a command that is to be copied.
    options: String,
    pub json: bool,
    pub out_is_terminal: bool,
    pub err_is_terminal: bool,
    colours: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Good,
    Waiting,
    Bad,
    Faint,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Waiting => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Faint => "\x1b[2m",
        }
    }
}

pub(crate) fn coloured(text: &str, colour: Colour, on: bool) -> String {
    if on && colour != Colour::Plain { format!("{}{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

impl Ui {
    pub fn new(json: bool, profile: &ProfileName) -> Self {
        // https://no-color.org: set and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            options: if profile.is_usual() { String::new() } else { format!("--profile {profile} ") },
            json,
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
            colours: !refused,
        }
    }

    pub fn colours_out(&self) -> bool {
        self.colours && self.out_is_terminal
    }

    pub fn colours_err(&self) -> bool {
        self.colours && self.err_is_terminal
    }

    /// Whether somebody is there to answer.
    pub fn can_ask(&self) -> bool {
        self.err_is_terminal && io::stdin().is_terminal()
    }

    /// Data, as it is.
    #[allow(clippy::unused_self, reason = "who writes to standard output is given a Ui")]
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
    }

    pub fn data_line(&self, text: &str) -> Result<(), Failure> {
        self.data(&format!("{text}\n"))
    }

    /// One JSON document. Hidden characters are escaped: still the same JSON, harmless to a terminal.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::BadAnswer { what: words::ANSWER, why: e.to_string() })?;
        self.data_line(&visible_json(&text))
    }

    /// Something for the person and not for a program.
    #[allow(clippy::unused_self, reason = "who speaks to the person is given a Ui")]
    pub fn note(&self, text: &str) {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(io::stderr(), "{text}");
    }

    pub fn failure(&self, failure: &Failure) {
        let (message, hint) = failures::said(failure);
        self.note(&format!("{} {message}", coloured("error:", Colour::Bad, self.colours_err())));
        if let Some(hint) = hint {
            self.hint(&hint);
        }
    }

    /// What to do next. A command in it is one to copy: it means the same profile.
    pub fn hint(&self, text: &str) {
        let text = text.replace("`daypass ", &format!("`daypass {}", self.options));
        self.note(&format!("{} {text}", coloured("hint:", Colour::Faint, self.colours_err())));
    }

    /// Asks for one line. `None` at the end of input.
    #[allow(clippy::unused_self, reason = "who asks the person is given a Ui")]
    pub fn ask(&self, question: &str) -> Result<Option<String>, Failure> {
        use std::io::Read as _;
        let _ = write!(io::stderr(), "{question} ");
        let _ = io::stderr().flush();
        let mut line = String::new();
        let read = io::stdin().lock().take(MAX_TYPED).read_line(&mut line).map_err(Failure::Output)?;
        Ok(if read == 0 { None } else { Some(line.trim().to_owned()) })
    }
}

fn visible_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0u16; 2];
    for c in text.chars() {
        if c != '\n' && is_hidden(c) {
            for unit in c.encode_utf16(&mut units) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_harmless_to_a_terminal_and_still_the_same() {
        let hostile = "a\x1b[2J\u{9b}2J\u{202e}b\u{e0041}é";
        let shown = visible_json(&serde_json::to_string_pretty(&hostile).unwrap());
        assert!(!shown.chars().any(is_hidden), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), hostile);
    }
}
