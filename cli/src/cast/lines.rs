//! A recording as it comes: line by line, each of a size that a line can have.

use crate::client::Body;
use crate::failure::Failure;
use crate::ui::words;

/// Longest line of a recording: a screen's worth of escapes many times over.
const MAX_LINE: usize = 8 << 20;

#[derive(Debug)]
pub struct Lines<'c> {
    body: Body<'c>,
    buffer: Vec<u8>,
    ended: bool,
}

impl<'c> Lines<'c> {
    pub fn of(body: Body<'c>) -> Self {
        Self { body, buffer: Vec::new(), ended: false }
    }

    /// The next line that is not empty. A last line without its end is a line that was still being
    /// written, or cut by a crash: it is left out.
    pub async fn next(&mut self) -> Result<Option<String>, Failure> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer.iter().skip(searched).position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                searched = 0;
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line.to_owned()));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(bad(words::LINE_TOO_LONG));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => self.ended = true,
            }
        }
    }
}

pub fn bad(why: &str) -> Failure {
    Failure::BadAnswer { what: words::RECORDING, why: why.to_owned() }
}
