//! The output of a channel without a PTY: exact bytes, with their stream and time.
//!
//! ```text
//! file  = "daypass-output-1\n" frame*
//! frame = milliseconds since the session started (8 bytes, big endian)
//!         stream (1 byte: 1 standard output, 2 standard error)
//!         length (4 bytes, big endian, at most 1 MiB)
//!         bytes
//! ```
//!
//! Read over HTTP it is NDJSON: `{"t":ms,"stream":"stdout","data":"base64"}`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Read};
use std::time::Duration;

pub(super) const MAGIC: &[u8] = b"daypass-output-1\n";
const MAX_FRAME: usize = 1 << 20;
const HEADER: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// Appends `bytes` as frames.
pub(super) fn encode(at: Duration, stream: OutputStream, bytes: &[u8], into: &mut Vec<u8>) {
    let ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    for part in bytes.chunks(MAX_FRAME) {
        into.extend_from_slice(&ms.to_be_bytes());
        into.push(match stream {
            OutputStream::Stdout => 1,
            OutputStream::Stderr => 2,
        });
        // A part is at most MAX_FRAME.
        into.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        into.extend_from_slice(part);
    }
}

/// Reads frames and gives NDJSON; holds one frame at a time. A frame that is not complete yet (a live
/// or an interrupted recording) is the end.
#[derive(Debug)]
pub(super) struct Ndjson<R> {
    frames: R,
    begun: bool,
    line: Vec<u8>,
    given: usize,
}

impl<R: Read> Ndjson<R> {
    pub fn new(frames: R) -> Self {
        Self { frames, begun: false, line: Vec::new(), given: 0 }
    }

    fn next_line(&mut self) -> io::Result<bool> {
        if !self.begun {
            let mut magic = [0; MAGIC.len()];
            if !fill(&mut self.frames, &mut magic)? {
                return Ok(false);
            }
            if magic != *MAGIC {
                return Err(broken("it does not start with daypass-output-1"));
            }
            self.begun = true;
        }
        let mut header = [0; HEADER];
        if !fill(&mut self.frames, &mut header)? {
            return Ok(false);
        }
        let [t0, t1, t2, t3, t4, t5, t6, t7, stream, l0, l1, l2, l3] = header;
        let ms = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let stream = match stream {
            1 => "stdout",
            2 => "stderr",
            _ => return Err(broken("a frame is of an unknown stream")),
        };
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_FRAME {
            return Err(broken("a frame is longer than 1 MiB"));
        }
        let mut bytes = vec![0; length];
        if !fill(&mut self.frames, &mut bytes)? {
            return Ok(false);
        }
        self.line =
            format!("{{\"t\":{ms},\"stream\":\"{stream}\",\"data\":\"{}\"}}\n", STANDARD.encode(bytes))
                .into_bytes();
        self.given = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Ndjson<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given == self.line.len() && !self.next_line()? {
            return Ok(0);
        }
        let mut left = self.line.get(self.given..).unwrap_or_default();
        let count = left.read(into)?;
        self.given += count;
        Ok(count)
    }
}

/// Fills `into` or says that the end came first.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the output recording is damaged: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ndjson(file: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        Ndjson::new(file).read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn frames_read_back_as_lines() {
        let mut file = MAGIC.to_vec();
        encode(Duration::from_millis(7), OutputStream::Stdout, b"hello", &mut file);
        encode(Duration::from_millis(9), OutputStream::Stderr, b"\xff", &mut file);
        assert_eq!(
            ndjson(&file).unwrap(),
            "{\"t\":7,\"stream\":\"stdout\",\"data\":\"aGVsbG8=\"}\n{\"t\":9,\"stream\":\"stderr\",\"data\":\"/w==\"}\n"
        );
        assert_eq!(
            ndjson(&file[..file.len() - 1]).unwrap().lines().count(),
            1,
            "an incomplete frame is the end"
        );
    }

    #[test]
    fn a_damaged_file_is_an_error_and_takes_no_memory() {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert!(ndjson(&file).is_err());
        assert!(ndjson(b"daypass-output-2\n").is_err());
        let long = vec![b'x'; MAX_FRAME + 1];
        let mut file = MAGIC.to_vec();
        encode(Duration::ZERO, OutputStream::Stdout, &long, &mut file);
        assert_eq!(ndjson(&file).unwrap().lines().count(), 2);
    }
}
