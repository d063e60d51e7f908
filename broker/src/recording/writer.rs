//! The thread that writes a session's files.
//!
//! One thread per session, so that a disk that stalls holds up this session and no other. It answers a
//! piece as soon as the kernel has it, and hashes it while the piece is already on its way.

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
/// A buffer that grew larger for one big piece is given back.
const KEEP_BUFFER: usize = 256 * 1024;

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

struct Writer {
    tracks: BTreeMap<i64, Track>,
    buffer: Vec<u8>,
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
            began: Instant::now(),
            growth,
            screens,
            left: most.map(|most| Left { bytes: most, most }),
            failed: None,
        };
        while let Some(command) = commands.blocking_recv() {
            writer.obey(command);
        }
    })?;
    Ok(sender)
}

impl Writer {
    // An answer that nobody waits for any more is dropped: its caller was cancelled, and the bytes were
    // recorded without having been delivered.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Open { number, path, start, done } => {
                let result = self.alive().and_then(|()| {
                    self.open(number, &path, start).map_err(|error| self.fail(RecordError::starting(error)))
                });
                let _ = done.send(result);
            }
            Command::Append { number, piece, done } => self.append(number, piece, done),
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

    fn append(&mut self, number: i64, piece: Piece, done: Answer<()>) {
        if let Err(error) = self.alive() {
            let _ = done.send(Err(error));
            return;
        }
        let costs = match &piece {
            Piece::Output(_, bytes) => bytes.len(),
            Piece::Events(events) => {
                events.iter().map(|event| serde_json::to_vec(event).map_or(0, |line| line.len())).sum()
            }
            Piece::Event(_) | Piece::Resize { .. } => 0,
        };
        if let Err(error) = self.spend(costs as u64) {
            let _ = done.send(Err(error));
            return;
        }
        let at = self.began.elapsed();
        let Some(track) = self.tracks.get_mut(&number) else {
            let _ = done.send(Err(RecordError::Closed));
            return;
        };
        self.buffer.clear();
        match (&mut track.format, piece) {
            (Format::Events, Piece::Event(event)) => {
                if let Err(error) = write_line(at, &event, &mut self.buffer) {
                    let error = self.fail(RecordError::writing(error));
                    let _ = done.send(Err(error));
                    return;
                }
            }
            (Format::Events, Piece::Events(events)) => {
                let written = events.iter().try_for_each(|event| write_line(at, event, &mut self.buffer));
                if let Err(error) = written {
                    let error = self.fail(RecordError::writing(error));
                    let _ = done.send(Err(error));
                    return;
                }
            }
            (Format::Asciicast(encoder), Piece::Output(_, bytes)) => {
                encoder.output(at, &bytes, &mut self.buffer);
            }
            (Format::Asciicast(_), Piece::Resize { cols, rows }) => {
                Encoder::resize(at, cols, rows, &mut self.buffer);
            }
            (Format::Output, Piece::Output(stream, bytes)) => {
                output::encode(at, stream, &bytes, &mut self.buffer);
            }
            (Format::Output, Piece::Resize { .. }) => {}
            (Format::Events, _) | (_, Piece::Event(_) | Piece::Events(_)) => {
                let error =
                    io::Error::new(io::ErrorKind::InvalidInput, "this recording does not take such a piece");
                let error = self.fail(RecordError::writing(error));
                let _ = done.send(Err(error));
                return;
            }
        }
        if let Err(error) = track.file.as_ref().write_all(&self.buffer) {
            let error = self.fail(RecordError::writing(error));
            let _ = done.send(Err(error));
            return;
        }
        let _ = done.send(Ok(()));
        track.took(&self.buffer);
        if matches!(track.format, Format::Asciicast(_)) {
            self.screens.grew(number, track.bytes);
        }
        self.growth.add(self.buffer.len() as u64);
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

    #[tokio::test]
    async fn no_recorder_no_session_after_one_failure_no_piece_is_taken_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let growth = Growth { unsealed: AtomicU64::new(0), grown: Notify::new(), much: 1 };
        let mut writer = Writer {
            tracks: BTreeMap::new(),
            buffer: Vec::new(),
            began: Instant::now(),
            growth: Arc::new(growth),
            screens: Screens::default(),
            left: None,
            failed: None,
        };
        let path = dir.path().join("output");
        writer.open(1, &path, Start::Output).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        // A piece that waited behind one that tore.
        writer.fail(RecordError::Stopped);
        let (done, answer) = oneshot::channel();
        writer.append(1, Piece::Output(OutputStream::Stdout, Bytes::from_static(b"late")), done);
        assert!(answer.await.unwrap().is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length, "nothing is written behind a torn piece");
    }
}
