//! Reading a recording, live, interrupted or closed, in bounded memory.

use super::store::{self, State};
use super::{absent, archive, output};
use crate::db::Db;
use bytes::Bytes;
use daypass_protocol::api::RecordingKind;
use daypass_protocol::ids::SessionId;
use daypass_protocol::time::Timestamp;
use futures_util::Stream;
use futures_util::stream;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use tokio::sync::mpsc;

const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is no such recording")]
    Unknown,
    #[error("the recording was removed on {}: it was kept as long as it had to be", day(*.0))]
    Removed(Timestamp),
    #[error("the recording cannot be read: {0}")]
    File(#[from] io::Error),
    #[error("the recording cannot be looked up: {0}")]
    Db(#[from] sqlx::Error),
}

fn day(at: Timestamp) -> String {
    at.to_string().chars().take(10).collect()
}

/// A recording, ready to be read.
pub struct Content {
    pub kind: RecordingKind,
    pub state: State,
    reader: Box<dyn Read + Send>,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("kind", &self.kind)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

pub fn content_type(kind: RecordingKind) -> &'static str {
    match kind {
        RecordingKind::Asciicast => "application/x-asciicast",
        RecordingKind::Output | RecordingKind::Events => "application/x-ndjson",
    }
}

/// The content of one recording: asciicast v2, or NDJSON. Which file it is says the row; nothing of the
/// path comes from whoever asks.
pub async fn read(db: &Db, root: &Path, session: &SessionId, number: u32) -> Result<Content, ReadError> {
    let row = store::get(db, session, number).await?.ok_or(ReadError::Unknown)?;
    if let Some(at) = row.removed_at {
        return Err(ReadError::Removed(at));
    }
    let path = place(root, &row.file)?.raw;
    let kind = row.kind;
    let reader = super::seal::blocking(move || open_file(&path)).await?;
    let reader: Box<dyn Read + Send> = match kind {
        RecordingKind::Output => Box::new(output::Ndjson::new(io::BufReader::with_capacity(CHUNK, reader))),
        RecordingKind::Asciicast | RecordingKind::Events => reader,
    };
    Ok(Content { kind, state: row.state, reader })
}

impl Content {
    /// For a thread that may block.
    pub fn into_reader(self) -> Box<dyn Read + Send> {
        self.reader
    }

    /// Read on the blocking pool, a few chunks ahead of whoever takes them.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let mut reader = self.reader;
        tokio::task::spawn_blocking(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let mut filled = 0;
                // Fill the chunk: lines are short, and each chunk costs a hand-over.
                let result = loop {
                    let Some(room) = chunk.get_mut(filled..).filter(|room| !room.is_empty()) else {
                        break Ok(());
                    };
                    match reader.read(room) {
                        Ok(0) => break Ok(()),
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => break Err(error),
                    }
                };
                chunk.truncate(filled);
                if filled > 0 && sender.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                    return;
                }
                match result {
                    Ok(()) if filled == 0 => return,
                    Ok(()) => {}
                    Err(error) => {
                        // Whoever read is gone, or hears of it.
                        let _ = sender.blocking_send(Err(error));
                        return;
                    }
                }
            }
        });
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|item| (item, receiver)) })
    }
}

/// The two names under which a recording may lie.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub raw: PathBuf,
    pub compressed: PathBuf,
}

/// Refuses a path that leaves the root, whoever wrote it into the row.
pub(crate) fn place(root: &Path, file: &str) -> io::Result<Place> {
    let inside =
        !file.is_empty() && Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        let message = format!("the row names a file outside the recordings folder: {file:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let raw = root.join(file);
    Ok(Place { compressed: archive::compressed(&raw), raw })
}

/// The content under `path`, compressed or not.
pub(crate) fn open_file(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    match File::open(path) {
        Ok(file) => Ok(Box::new(file)),
        // It may be compressed between two looks, never the other way round.
        Err(error) if absent(&error) => {
            Ok(Box::new(zstd::Decoder::new(File::open(archive::compressed(path))?)?))
        }
        Err(error) => Err(error),
    }
}
