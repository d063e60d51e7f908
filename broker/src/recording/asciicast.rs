//! asciicast v2, as <https://docs.asciinema.org/manual/asciicast/v2/> has it and asciinema plays it.
//!
//! What the screen showed is kept as it was, escapes and all: inside JSON strings it is harmless, and
//! whoever shows it must treat it as hostile.

use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::open::Pty;
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;

/// Turns output into event lines. A character cut in two by the border of two chunks is held back until
/// its rest arrives (at most 3 bytes); bytes that are no UTF-8 become U+FFFD, as asciinema does it.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    held: Vec<u8>,
}

impl Encoder {
    pub fn header(pty: &Pty, at: Timestamp, into: &mut Vec<u8>) {
        // A width or height of 0 is a client that does not know (RFC 4254 section 6.2); players need a screen.
        let or = |cells: u32, usual| if cells == 0 { usual } else { cells };
        let header = json!({
            "version": 2,
            "width": or(pty.size.cols, 80),
            "height": or(pty.size.rows, 24),
            "timestamp": at.as_secs(),
            "env": { "TERM": pty.term },
        });
        into.extend_from_slice(header.to_string().as_bytes());
        into.push(b'\n');
    }

    pub fn output(&mut self, at: Duration, bytes: &[u8], into: &mut Vec<u8>) {
        self.held.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.held);
        let mut text = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.held = after.to_vec();
                        break;
                    };
                    text.push('\u{FFFD}');
                    rest = after.get(bad..).unwrap_or_default();
                }
            }
        }
        if !text.is_empty() {
            event(at, "o", &text, into);
        }
    }

    pub fn resize(at: Duration, cols: u32, rows: u32, into: &mut Vec<u8>) {
        // RFC 4254 section 6.7: zero dimensions are ignored.
        if cols > 0 && rows > 0 {
            event(at, "r", &format!("{cols}x{rows}"), into);
        }
    }

    /// What was held back and never completed.
    pub fn end(&mut self, at: Duration, into: &mut Vec<u8>) {
        if !std::mem::take(&mut self.held).is_empty() {
            event(at, "o", "\u{FFFD}", into);
        }
    }
}

fn event(at: Duration, code: &str, data: &str, into: &mut Vec<u8>) {
    let data = serde_json::Value::from(data);
    // Writing to a Vec does not fail.
    let _ = writeln!(into, "[{}.{:06}, \"{code}\", {data}]", at.as_secs(), at.subsec_micros());
}

#[cfg(test)]
mod tests {
    use super::*;
    use daypass_protocol::tunnel::open::WindowSize;

    fn shown(chunks: &[&[u8]]) -> String {
        let (mut encoder, mut into) = (Encoder::default(), Vec::new());
        for chunk in chunks {
            encoder.output(Duration::from_millis(1500), chunk, &mut into);
        }
        encoder.end(Duration::from_secs(2), &mut into);
        String::from_utf8(into)
            .unwrap()
            .lines()
            .map(|line| {
                let (_, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
                assert_eq!(code, "o");
                data
            })
            .collect()
    }

    #[test]
    fn a_character_cut_by_the_border_of_two_chunks_stays_whole() {
        let text = "grün 漢字 🦀";
        for cut in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(shown(&[a, b]), text, "cut at {cut}");
        }
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(shown(&single), text);
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        assert_eq!(shown(&[b"a\xff\xfeb"]), "a\u{FFFD}\u{FFFD}b");
        assert_eq!(shown(&[b"a\xe6\xbc"]), "a\u{FFFD}", "never completed");
        assert_eq!(shown(&[b"a\xe6", b"b"]), "a\u{FFFD}b");
    }

    #[test]
    fn hostile_output_stays_inside_its_string() {
        let hostile = "\"]\n[0,\"o\",\"\x1b]0;title\x07\x1b[2J\u{202e}\0";
        assert_eq!(shown(&[hostile.as_bytes()]), hostile);
        let mut into = Vec::new();
        Encoder::default().output(Duration::ZERO, hostile.as_bytes(), &mut into);
        assert_eq!(into.split(|byte| *byte == b'\n').count(), 2);
    }

    #[test]
    fn a_terminal_that_does_not_say_its_size_is_played_at_the_usual_one() {
        let mut into = Vec::new();
        let pty = Pty { term: "dumb".to_owned(), size: WindowSize::default(), modes: Vec::new() };
        Encoder::header(&pty, Timestamp::from_millis(0), &mut into);
        let header: serde_json::Value = serde_json::from_slice(&into).unwrap();
        assert_eq!((header["width"].as_u64(), header["height"].as_u64()), (Some(80), Some(24)));
        into.clear();
        Encoder::resize(Duration::ZERO, 0, 40, &mut into);
        assert!(into.is_empty(), "a size of nothing is no resize");
    }
}
