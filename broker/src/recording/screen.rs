//! What a terminal shows, for whoever watches while it is recorded.
//!
//! The writer says how far the file of each terminal has got, and waits for nobody. A watcher reads that file by
//! itself, at its own pace, and only as far as whole pieces are written.

use super::read::open_file;
use super::seal::blocking;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// Read at once. A line can be longer: a piece of 128 KiB with each byte escaped.
const CHUNK: usize = 64 * 1024;
/// Longest line that is waited for: more than the recorder makes of one piece.
const MAX_LINE: usize = 1 << 20;

#[derive(Clone, Debug)]
struct Screen {
    path: PathBuf,
    bytes: u64,
}

/// The terminals of one session that are open, by the number of their recording. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Screens(watch::Sender<BTreeMap<i64, Screen>>);

impl Screens {
    pub(super) fn begin(&self, number: i64, path: &Path, bytes: u64) {
        self.0.send_modify(|open| {
            open.insert(number, Screen { path: path.to_owned(), bytes });
        });
    }

    pub(super) fn grew(&self, number: i64, bytes: u64) {
        self.0.send_modify(|open| {
            if let Some(screen) = open.get_mut(&number) {
                screen.bytes = bytes;
            }
        });
    }

    pub(super) fn end(&self, number: i64) {
        self.0.send_modify(|open| {
            open.remove(&number);
        });
    }

    /// How many bytes are on record of a terminal that is open.
    pub fn bytes(&self, channel: u32) -> Option<u64> {
        self.0.borrow().get(&recording_of(channel)).map(|screen| screen.bytes)
    }

    /// The channel of the first terminal that is open; waits for one.
    pub async fn first(&self) -> u32 {
        let mut watch = self.0.subscribe();
        loop {
            let first = watch.borrow_and_update().keys().next().copied();
            if let Some(channel) = first.and_then(|number| u32::try_from(number - 1).ok()) {
                return channel;
            }
            if watch.changed().await.is_err() {
                // The sender lives in self.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads what is on record of a terminal and what comes, from this byte on, which is the first of a line.
    /// `None` if it is not open.
    pub async fn tail(&self, channel: u32, from: u64) -> io::Result<Option<Tail>> {
        let number = recording_of(channel);
        let screens = self.0.subscribe();
        let path = screens.borrow().get(&number).map(|screen| screen.path.clone());
        let Some(path) = path else { return Ok(None) };
        let file = blocking(move || {
            let mut file = open_file(&path)?;
            io::copy(&mut file.by_ref().take(from), &mut io::sink())?;
            Ok(file)
        })
        .await?;
        Ok(Some(Tail { number, read: from, held: Vec::new(), file: Some(file), screens }))
    }
}

fn recording_of(channel: u32) -> i64 {
    i64::from(channel) + 1
}

/// What comes next of a terminal.
#[derive(Debug)]
pub enum Next {
    /// Whole lines.
    Lines(Bytes),
    /// Everything that is on record so far was read.
    NotYet,
    /// The terminal is closed, and everything was read.
    Over,
}

/// One watcher's place in a recording that grows. Holds one chunk and at most one line.
pub struct Tail {
    number: i64,
    read: u64,
    /// The beginning of a line whose end was not read yet.
    held: Vec<u8>,
    /// Away while it is read from.
    file: Option<Box<dyn Read + Send>>,
    screens: watch::Receiver<BTreeMap<i64, Screen>>,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("number", &self.number).field("read", &self.read).finish_non_exhaustive()
    }
}

impl Tail {
    /// Never waits for the session. Not to be dropped half-way and called again: it would lose its place.
    pub async fn next(&mut self) -> io::Result<Next> {
        loop {
            let bytes = self.screens.borrow_and_update().get(&self.number).map(|screen| screen.bytes);
            // Of a terminal that is closed everything is there; of one that is not, more than this may be a
            // piece that is being written.
            let there = bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(self.read));
            if there == 0 {
                return Ok(Next::NotYet);
            }
            let chunk = self.chunk(there.min(CHUNK as u64)).await?;
            if chunk.is_empty() {
                if bytes.is_some() {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the recording became shorter"));
                }
                return Ok(Next::Over);
            }
            self.read += chunk.len() as u64;
            self.held.extend_from_slice(&chunk);
            if let Some(end) = self.held.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.held.split_off(end + 1);
                return Ok(Next::Lines(std::mem::replace(&mut self.held, rest).into()));
            }
            if self.held.len() > MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the recording has no end"));
            }
        }
    }

    async fn chunk(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let mut file = self.file.take().ok_or_else(|| io::Error::other("a read was given up half-way"))?;
        let (file, chunk) = blocking(move || {
            let mut chunk = Vec::new();
            file.by_ref().take(most).read_to_end(&mut chunk)?;
            Ok((file, chunk))
        })
        .await?;
        self.file = Some(file);
        Ok(chunk)
    }

    /// Waits until there may be more. May be dropped half-way.
    pub async fn grown(&mut self) {
        if self.screens.changed().await.is_err() {
            // The session and its recorder are gone, in order or not: nothing grows any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::tests::Fixture;
    use crate::recording::{ChannelFacts, ChannelRecorder, Recorder};
    use crate::testing;
    use daypass_protocol::api::EndReason;
    use daypass_protocol::channel::ChannelKind;
    use daypass_protocol::tunnel::open::{Pty, WindowSize};
    use std::io::Write as _;

    async fn terminal(recorder: &Recorder) -> ChannelRecorder {
        let pty = Pty { term: "xterm".to_owned(), size: WindowSize::default(), modes: Vec::new() };
        let facts = ChannelFacts { kind: ChannelKind::Shell, pty: Some(pty), command: None, target: None };
        recorder.channel(0, facts).await.unwrap()
    }

    /// Everything until there is nothing yet, or no more; each piece is whole lines.
    async fn read(tail: &mut Tail) -> (String, bool) {
        let mut all = String::new();
        loop {
            match tail.next().await.unwrap() {
                Next::Lines(lines) => {
                    assert!(lines.ends_with(b"\n"), "{lines:?}");
                    all += std::str::from_utf8(&lines).unwrap();
                }
                Next::NotYet => return (all, false),
                Next::Over => return (all, true),
            }
        }
    }

    async fn say(terminal: &ChannelRecorder, tail: &mut Tail, text: &str) -> String {
        terminal.stdout(&Bytes::from(text.to_owned())).await.unwrap().recorded().await.unwrap();
        tail.grown().await;
        read(tail).await.0
    }

    #[tokio::test]
    async fn a_watcher_reads_what_is_on_record_and_what_comes_in_whole_lines_until_it_is_closed() {
        let fixture = Fixture::new(testing::sqlite().await).await;
        let recorder = fixture.recordings.start(&fixture.facts, None).await.unwrap();
        let screens = recorder.screens();
        assert!(screens.tail(0, 0).await.unwrap().is_none(), "no terminal yet");
        let terminal = terminal(&recorder).await;
        assert_eq!(screens.first().await, 0);
        let mut tail = screens.tail(0, 0).await.unwrap().unwrap();
        let mut all = read(&mut tail).await.0;
        assert!(all.starts_with("{\"") && all.contains("\"version\":2"), "{all}");
        // Each byte of it is escaped: a line of more than one chunk.
        for text in ["one\r\n", &"\u{1b}".repeat(128 * 1024), "three"] {
            let lines = say(&terminal, &mut tail, text).await;
            assert_eq!(lines.lines().count(), 1, "{}", lines.len());
            all += &lines;
        }
        let there = screens.bytes(0).unwrap();
        assert_eq!(there, all.len() as u64);
        let mut second = screens.tail(0, there - 10).await.unwrap().unwrap();
        assert_eq!(read(&mut second).await, (all[all.len() - 10..].to_owned(), false), "from a byte on");
        terminal.close().await.unwrap();
        recorder.close(EndReason::Closed, None).await.unwrap();
        fixture.recordings.settle().await;
        assert_eq!(read(&mut tail).await, (String::new(), true));
        assert_eq!(fixture.content(1).await, all);
        assert!(screens.tail(0, 0).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_piece_that_is_only_half_written_is_not_shown() {
        let fixture = Fixture::new(testing::sqlite().await).await;
        let recorder = fixture.recordings.start(&fixture.facts, None).await.unwrap();
        let terminal = terminal(&recorder).await;
        let mut tail = recorder.screens().tail(0, 0).await.unwrap().unwrap();
        let _header = read(&mut tail).await;
        let file = fixture.root.join(&fixture.row(1).await.file);
        let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(b"[0.1, \"o\", \"half\n").unwrap();
        assert_eq!(read(&mut tail).await, (String::new(), false));
        drop(terminal);
        drop(recorder);
    }
}
