//! The thread that writes a session's files.
//!
//! One thread per session, so that a disk that stalls holds up this session and no other. What has piled up for
//! one file is written at once. A piece is answered as soon as the kernel has it, and hashed while it is already
//! on its way.

use super::RecordError;
use super::asciicast::Encoder;
use super::event::{Line, SessionEvent};
use super::output::{self, OutputStream};
use super::screen::Screens;
use bytes::Bytes;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::open::Pty;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot};

/// Commands that may wait; each holds at most one chunk of a channel.
pub(super) const QUEUE: usize = 16;
/// Bytes that make no more pieces wait for the same write.
const GATHER: usize = 128 * 1024;
/// A buffer that grew larger for one big piece is given back.
const KEEP_BUFFER: usize = 2 * GATHER;

pub(super) enum Start {
    Events,
    Asciicast { pty: Pty, at: Timestamp },
    Output,
}

pub(super) enum Piece {
    Event(Box<SessionEvent>),
    Events(Vec<SessionEvent>),
    Output(OutputStream, Bytes),
    Resize { cols: u32, rows: u32 },
}

pub(super) type Answer<T> = oneshot::Sender<Result<T, RecordError>>;

pub(super) enum Command {
    /// Creates the file and writes its header.
    Open {
        number: i64,
        path: PathBuf,
        start: Start,
        done: Answer<()>,
    },
    Append {
        number: i64,
        piece: Piece,
        done: Answer<()>,
    },
    /// Where the files that grew since the last snapshot stand now.
    Snapshot {
        done: Answer<Vec<Snapshot>>,
    },
    /// Takes one recording, or all, away from the writer.
    Finish {
        number: Option<i64>,
        done: Answer<Vec<Snapshot>>,
    },
}

/// A recording up to here.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub number: i64,
    pub bytes: i64,
    pub sha256: String,
    pub file: Arc<File>,
}

/// Tells the sealer how much there is to seal.
#[derive(Debug)]
pub(super) struct Growth {
    pub unsealed: AtomicU64,
    pub grown: Notify,
    /// The sealer is woken at the first byte, and again at this many.
    pub much: u64,
}

impl Growth {
    fn add(&self, bytes: u64) {
        let before = self.unsealed.fetch_add(bytes, Ordering::AcqRel);
        if before == 0 || (before < self.much && before + bytes >= self.much) {
            self.grown.notify_one();
        }
    }
}

enum Format {
    Events,
    Asciicast(Encoder),
    Output,
}

struct Track {
    format: Format,
    file: Arc<File>,
    hash: Sha256,
    bytes: u64,
    grown: bool,
}

impl Track {
    fn snapshot(&self, number: i64) -> Snapshot {
        Snapshot {
            number,
            bytes: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            sha256: hex::encode(self.hash.clone().finalize()),
            file: self.file.clone(),
        }
    }

    fn took(&mut self, written: &[u8]) {
        self.hash.update(written);
        self.bytes += written.len() as u64;
        self.grown = true;
    }
}

/// What a session's limit leaves.
#[derive(Clone, Copy)]
struct Left {
    bytes: u64,
    most: u64,
}

/// Pieces of one track.
#[derive(Default)]
struct Gathered {
    number: i64,
    /// One for each of them.
    answers: Vec<Answer<()>>,
}

struct Writer {
    tracks: BTreeMap<i64, Track>,
    buffer: Vec<u8>,
    /// What lies in the buffer and is not written.
    gathered: Gathered,
    began: Instant,
    growth: Arc<Growth>,
    screens: Screens,
    /// Bytes of output that may still be written.
    left: Option<Left>,
    /// After one failure nothing is written any more: what is behind a torn piece would be no evidence.
    failed: Option<RecordError>,
}

fn write_line(at: std::time::Duration, event: &SessionEvent, into: &mut Vec<u8>) -> io::Result<()> {
    let t = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    serde_json::to_writer(&mut *into, &Line { t, event })?;
    into.push(b'\n');
    Ok(())
}

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(
    growth: Arc<Growth>,
    screens: Screens,
    most: Option<u64>,
) -> io::Result<mpsc::Sender<Command>> {
    let (sender, mut commands) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
        let mut writer = Writer {
            tracks: BTreeMap::new(),
            buffer: Vec::new(),
            gathered: Gathered::default(),
            began: Instant::now(),
            growth,
            screens,
            left: most.map(|most| Left { bytes: most, most }),
            failed: None,
        };
        let mut piled_up = Vec::new();
        while commands.blocking_recv_many(&mut piled_up, QUEUE) > 0 {
            writer.obey(piled_up.drain(..));
        }
    })?;
    Ok(sender)
}

impl Writer {
    // An answer that nobody waits for any more is dropped: its caller was cancelled, and the bytes were
    // recorded without having been delivered.
    fn obey(&mut self, commands: impl Iterator<Item = Command>) {
        for command in commands {
            if let Command::Append { number, piece, done } = command {
                if number != self.gathered.number || self.buffer.len() >= GATHER {
                    self.write();
                }
                match self.gather(number, piece) {
                    Ok(()) => self.gathered.answers.push(done),
                    Err(error) => drop(done.send(Err(error))),
                }
                continue;
            }
            self.write();
            match command {
                Command::Append { .. } => {}
                Command::Open { number, path, start, done } => {
                    let result = self.alive().and_then(|()| {
                        self.open(number, &path, start)
                            .map_err(|error| self.fail(RecordError::starting(error)))
                    });
                    let _ = done.send(result);
                }
                Command::Snapshot { done } => {
                    let _ = done.send(self.alive().map(|()| self.snapshot()));
                }
                Command::Finish { number, done } => {
                    let result = self.alive().and_then(|()| match number {
                        Some(number) => self.finish(number).map(|snapshot| vec![snapshot]),
                        None => {
                            let numbers: Vec<i64> = self.tracks.keys().copied().collect();
                            numbers.into_iter().map(|number| self.finish(number)).collect()
                        }
                    });
                    let _ = done.send(result);
                }
            }
        }
        self.write();
    }

    fn alive(&self) -> Result<(), RecordError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: RecordError) -> RecordError {
        self.failed.get_or_insert(error).clone()
    }

    fn open(&mut self, number: i64, path: &std::path::Path, start: Start) -> io::Result<()> {
        // create_new: what is recorded is never written over, whatever the ids say.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        self.buffer.clear();
        let format = match start {
            Start::Events => Format::Events,
            Start::Asciicast { pty, at } => {
                Encoder::header(&pty, at, &mut self.buffer);
                Format::Asciicast(Encoder::default())
            }
            Start::Output => {
                self.buffer.extend_from_slice(output::MAGIC);
                Format::Output
            }
        };
        let mut track = Track { format, file: Arc::new(file), hash: Sha256::new(), bytes: 0, grown: false };
        if let Err(error) = track.file.as_ref().write_all(&self.buffer) {
            // No byte of a session is in it yet.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        track.took(&self.buffer);
        self.growth.add(track.bytes);
        if matches!(track.format, Format::Asciicast(_)) {
            self.screens.begin(number, path, track.bytes);
        }
        self.tracks.insert(number, track);
        Ok(())
    }

    /// Puts a piece behind those of its track that are written next.
    fn gather(&mut self, number: i64, piece: Piece) -> Result<(), RecordError> {
        self.alive()?;
        let costs = match &piece {
            Piece::Output(_, bytes) => bytes.len(),
            Piece::Events(events) => {
                events.iter().map(|event| serde_json::to_vec(event).map_or(0, |line| line.len())).sum()
            }
            Piece::Event(_) | Piece::Resize { .. } => 0,
        };
        self.spend(costs as u64)?;
        let at = self.began.elapsed();
        let track = self.tracks.get_mut(&number).ok_or(RecordError::Closed)?;
        self.gathered.number = number;
        let encoded = match (&mut track.format, piece) {
            (Format::Events, Piece::Event(event)) => write_line(at, &event, &mut self.buffer),
            (Format::Events, Piece::Events(events)) => {
                events.iter().try_for_each(|event| write_line(at, event, &mut self.buffer))
            }
            (Format::Asciicast(encoder), Piece::Output(_, bytes)) => {
                encoder.output(at, &bytes, &mut self.buffer);
                Ok(())
            }
            (Format::Asciicast(_), Piece::Resize { cols, rows }) => {
                Encoder::resize(at, cols, rows, &mut self.buffer);
                Ok(())
            }
            (Format::Output, Piece::Output(stream, bytes)) => {
                output::encode(at, stream, &bytes, &mut self.buffer);
                Ok(())
            }
            (Format::Output, Piece::Resize { .. }) => Ok(()),
            (Format::Events, _) | (_, Piece::Event(_) | Piece::Events(_)) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "this recording does not take such a piece"))
            }
        };
        encoded.map_err(|error| self.fail(RecordError::writing(error)))
    }

    /// Writes what was gathered, and answers for it.
    fn write(&mut self) {
        if self.gathered.answers.is_empty() {
            self.buffer.clear();
            return;
        }
        let number = self.gathered.number;
        let written = self.alive().and_then(|()| {
            let track = self.tracks.get(&number).ok_or(RecordError::Closed)?;
            track.file.as_ref().write_all(&self.buffer).map_err(RecordError::writing)
        });
        let written = written.map_err(|error| self.fail(error));
        for done in self.gathered.answers.drain(..) {
            let _ = done.send(written.clone());
        }
        if written.is_ok()
            && let Some(track) = self.tracks.get_mut(&number)
        {
            track.took(&self.buffer);
            if matches!(track.format, Format::Asciicast(_)) {
                self.screens.grew(number, track.bytes);
            }
            self.growth.add(self.buffer.len() as u64);
        }
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// Takes from what is left. Once it was not enough, nothing is: a smaller piece behind one that was
    /// refused would leave a gap that nobody sees.
    fn spend(&mut self, bytes: u64) -> Result<(), RecordError> {
        let Some(left) = &mut self.left else { return Ok(()) };
        match left.bytes.checked_sub(bytes) {
            Some(rest) => {
                left.bytes = rest;
                Ok(())
            }
            None => {
                left.bytes = 0;
                Err(RecordError::TooLong { mib: left.most >> 20 })
            }
        }
    }

    fn snapshot(&mut self) -> Vec<Snapshot> {
        self.growth.unsealed.store(0, Ordering::Release);
        self.tracks
            .iter_mut()
            .filter_map(|(number, track)| std::mem::take(&mut track.grown).then(|| track.snapshot(*number)))
            .collect()
    }

    fn finish(&mut self, number: i64) -> Result<Snapshot, RecordError> {
        let mut track = self.tracks.remove(&number).ok_or(RecordError::Closed)?;
        if let Format::Asciicast(encoder) = &mut track.format {
            self.buffer.clear();
            encoder.end(self.began.elapsed(), &mut self.buffer);
            if let Err(error) = track.file.as_ref().write_all(&self.buffer) {
                return Err(self.fail(RecordError::writing(error)));
            }
            track.took(&self.buffer);
            self.screens.end(number);
        }
        Ok(track.snapshot(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer {
        let growth = Growth { unsealed: AtomicU64::new(0), grown: Notify::new(), much: 1 };
        Writer {
            tracks: BTreeMap::new(),
            buffer: Vec::new(),
            gathered: Gathered::default(),
            began: Instant::now(),
            growth: Arc::new(growth),
            screens: Screens::default(),
            left: None,
            failed: None,
        }
    }

    fn output(number: i64, bytes: &'static [u8]) -> (Command, oneshot::Receiver<Result<(), RecordError>>) {
        let (done, answer) = oneshot::channel();
        let piece = Piece::Output(OutputStream::Stdout, Bytes::from_static(bytes));
        (Command::Append { number, piece, done }, answer)
    }

    #[tokio::test]
    async fn no_recorder_no_session_after_one_failure_no_piece_is_taken_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer();
        let path = dir.path().join("output");
        writer.open(1, &path, Start::Output).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        // A piece that waited behind one that tore.
        writer.fail(RecordError::Stopped);
        let (command, answer) = output(1, b"late");
        writer.obey([command].into_iter());
        assert!(answer.await.unwrap().is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "nothing is written behind a torn piece");
    }

    #[tokio::test]
    async fn what_has_piled_up_is_written_to_where_each_piece_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, paths) = (writer(), [1, 2].map(|number| dir.path().join(number.to_string())));
        for (number, path) in (1..).zip(&paths) {
            writer.open(number, path, Start::Output).unwrap();
        }
        let (commands, answers): (Vec<_>, Vec<_>) = [
            output(1, b"one"),
            output(1, b"two"),
            output(2, b"three"),
            output(7, b"nowhere"),
            output(1, b"four"),
        ]
        .into_iter()
        .unzip();
        writer.obey(commands.into_iter());
        let mut taken = Vec::new();
        for answer in answers {
            taken.push(answer.await.unwrap().is_ok());
        }
        assert_eq!(taken, [true, true, true, false, true]);
        let said = paths.map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
        let found = |text: &str| said.each_ref().map(|said| said.find(text).is_some());
        assert!(["one", "two", "four"].iter().all(|text| found(text) == [true, false]));
        assert_eq!(found("three"), [false, true]);
        let hashed = writer.snapshot();
        for (snapshot, number) in hashed.iter().zip(1..) {
            let path = dir.path().join(snapshot.number.to_string());
            assert_eq!(snapshot.number, number);
            assert_eq!(snapshot.sha256, hex::encode(Sha256::digest(std::fs::read(path).unwrap())));
        }
        assert_eq!(hashed.len(), 2);
    }

    #[tokio::test]
    async fn no_recorder_no_session_pieces_of_a_write_that_fails_are_all_refused() {
        let mut writer = writer();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        writer.open(1, &path, Start::Output).unwrap();
        // A disk that is full: the track writes where nothing can be.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        writer.tracks.get_mut(&1).unwrap().file = Arc::new(full);
        let (commands, answers): (Vec<_>, Vec<_>) =
            [output(1, b"one"), output(1, b"two")].into_iter().unzip();
        writer.obey(commands.into_iter());
        for answer in answers {
            assert!(answer.await.unwrap().is_err());
        }
        assert!(writer.alive().is_err());
    }
}
