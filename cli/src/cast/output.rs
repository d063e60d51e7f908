//! The output of a command without a terminal: NDJSON, each line a piece of one stream, as in
//! `{"t":ms,"stream":"stdout","data":"base64"}`.

use super::filter::{Allow, Filter};
use super::lines::{Lines, bad};
use crate::failure::Failure;
use crate::ui::Ui;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::io::Write as _;

#[derive(Deserialize)]
struct Piece {
    stream: Stream,
    data: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stream {
    Stdout,
    Stderr,
}

/// Bytes into text, where a character may be cut in two between pieces.
#[derive(Debug, Default)]
struct Characters(Vec<u8>);

impl Characters {
    fn take(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let complete = match std::str::from_utf8(&self.0) {
            // Incomplete at the end, and only there: keep it for the next piece.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // Wrong somewhere: what may be incomplete at the end is at most three bytes.
            Err(_) => self.0.len().saturating_sub(unfinished(&self.0)),
            Ok(_) => self.0.len(),
        };
        let text = String::from_utf8_lossy(&self.0[..complete]).into_owned();
        self.0.drain(..complete);
        text
    }
}

/// How many bytes at the end begin a character that is not complete.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|back| {
            let lead = bytes[bytes.len() - back];
            let length = match lead {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => 0,
            };
            length > *back
        })
        .unwrap_or(0)
}

/// Prints what was written to standard output there to standard output here, and errors to errors.
pub async fn print(lines: &mut Lines<'_>, ui: &Ui) -> Result<(), Failure> {
    let allow = |is_terminal: bool| if is_terminal { Allow::Colours } else { Allow::Text };
    let mut out = (Characters::default(), Filter::new(allow(ui.colours_out())));
    let mut err = (Characters::default(), Filter::new(allow(ui.colours_err())));
    while let Some(line) = lines.next().await? {
        let piece: Piece = serde_json::from_str(&line).map_err(|e| bad(&e.to_string()))?;
        let bytes = STANDARD.decode(piece.data).map_err(|e| bad(&e.to_string()))?;
        match piece.stream {
            Stream::Stdout => ui.data(&out.1.pass(&out.0.take(&bytes)))?,
            Stream::Stderr => {
                let text = err.1.pass(&err.0.take(&bytes));
                std::io::stderr().write_all(text.as_bytes()).map_err(Failure::Output)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_in_two_is_one_character() {
        let text = "aé日🦀b".as_bytes();
        for at in 0..=text.len() {
            let mut characters = Characters::default();
            let joined = characters.take(&text[..at]) + &characters.take(&text[at..]);
            assert_eq!(joined, "aé日🦀b", "cut at {at}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such_and_bounded() {
        let mut characters = Characters::default();
        assert_eq!(characters.take(b"\xff\xfea"), "\u{fffd}\u{fffd}a");
        assert_eq!(characters.take(b"\xff\xe6\x97"), "\u{fffd}");
        assert_eq!(characters.take(b"\xa5"), "日");
        assert!(characters.0.is_empty());
    }
}
