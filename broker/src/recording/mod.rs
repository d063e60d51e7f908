//! What was captured of a session, and the proof that it is whole.
//!
//! A session takes a [`Recorder`] by value and delivers a byte only after the recorder has it. Files lie
//! in `root/YYYY-MM-DD/<session>/`: `events.ndjson` with what happened, and for each channel an
//! asciicast (with a PTY) or its exact output. Of an SFTP channel no content is stored: what was done to
//! which file stands in `events.ndjson` ([`sftp`]). While they grow, their length and running SHA-256 go into
//! the audit log; closed, they are compressed with zstd. A failure anywhere ends the session.

mod archive;
mod asciicast;
mod error;
mod event;
mod output;
mod read;
mod recorder;
mod retention;
mod screen;
mod seal;
pub mod sftp;
pub mod store;
mod strays;
mod tap;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use error::RecordError;
pub use event::{Command, SessionEvent};
pub use read::{Content, ReadError, content_type, read};
pub use recorder::{ChannelFacts, ChannelRecorder, Recorder};
pub use screen::{Next, Screens, Tail};
pub use seal::Pending;
pub use tap::NotPassed;

pub(crate) use read::{Place, open_file, place};

use crate::clock::Clock;
use crate::db::Db;
use daypass_protocol::ids::{DeviceId, Login, PersonId, RequestId, SessionId};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// With less than this free on the recordings' disk, no new session starts.
    pub min_free_bytes: u64,
    /// With more than this taken by recordings, no new session starts.
    pub total_bytes: Option<u64>,
    /// What grew is sealed at the latest after this time…
    pub seal_every: Duration,
    /// …or when this much is unsealed…
    pub seal_bytes: u64,
    /// …but not more often than this.
    pub seal_gap: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_free_bytes: 512 << 20,
            total_bytes: None,
            seal_every: Duration::from_secs(2),
            seal_bytes: 512 << 10,
            seal_gap: Duration::from_millis(250),
        }
    }
}

/// Whose session is recorded.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    pub session: SessionId,
    pub request: RequestId,
    pub person: PersonId,
    pub email: String,
    pub device: DeviceId,
    pub login: Login,
    pub client_address: String,
}

/// All recordings of this broker.
#[derive(Clone, Debug)]
pub struct Recordings {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Db,
    clock: Clock,
    root: PathBuf,
    limits: Limits,
    tasks: TaskTracker,
    /// Compression takes one core at a time, whatever closes at once.
    compressing: Semaphore,
}

impl Recordings {
    pub fn new(db: Db, clock: Clock, root: PathBuf, limits: Limits) -> Self {
        let (tasks, compressing) = (TaskTracker::new(), Semaphore::new(1));
        Self { inner: Arc::new(Inner { db, clock, root, limits, tasks, compressing }) }
    }

    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Starts the recording of a session whose row exists; it takes at most `most` bytes of output. Without
    /// what this returns, nothing can carry the session's bytes.
    pub async fn start(&self, facts: &SessionFacts, most: Option<u64>) -> Result<Recorder, RecordError> {
        self.free_space()?;
        self.quota().await?;
        let at = self.inner.clock.now();
        let folder = format!("{}/{}", &at.to_string()[..10], facts.session);
        let path = self.inner.root.join(&folder);
        seal::blocking(move || DirBuilder::new().recursive(true).mode(0o700).create(path))
            .await
            .map_err(RecordError::starting)?;
        let growth = Arc::new(writer::Growth {
            unsealed: AtomicU64::new(0),
            grown: Notify::new(),
            much: self.inner.limits.seal_bytes,
        });
        let screens = Screens::default();
        let commands = writer::start(growth.clone(), screens.clone(), most).map_err(RecordError::starting)?;
        let sealer = seal::Sealer::new(self.inner.clone(), facts.clone(), folder, commands, growth);
        self.inner.tasks.spawn(sealer.clone().run());
        Recorder::begin(sealer, screens, facts).await
    }

    /// Bytes free on the recordings' disk; an error when they are too few for a new session.
    pub fn free_space(&self) -> Result<u64, RecordError> {
        // Before the first session the folder need not exist; its nearest ancestor is on the same disk.
        let there = self.inner.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let disk = rustix::fs::statvfs(there).map_err(|error| RecordError::starting(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let min = self.inner.limits.min_free_bytes;
        if free < min {
            return Err(RecordError::TooLittleRoom { free_mib: free >> 20, min_mib: min.div_ceil(1 << 20) });
        }
        Ok(free)
    }

    /// An error when the recordings take all that they may.
    async fn quota(&self) -> Result<(), RecordError> {
        let Some(most) = self.inner.limits.total_bytes else { return Ok(()) };
        let used = store::total_bytes(&self.inner.db).await?;
        if used < most {
            return Ok(());
        }
        Err(RecordError::Quota { used_mib: used >> 20, most_mib: most >> 20 })
    }

    /// To be called once, before the first session: recordings that no recorder closed are marked
    /// interrupted, and what was not compressed is. Nothing is truncated. Returns how many were open.
    pub async fn recover(&self) -> Result<usize, sqlx::Error> {
        let open = store::open_ones(&self.inner.db).await?;
        for row in &open {
            archive::interrupt(&self.inner, row, "the broker was not shut down in order").await?;
        }
        let strays = self.clear_strays().await?;
        if strays > 0 {
            tracing::warn!(strays, "files that no recording had begun in were removed");
        }
        for row in store::uncompressed(&self.inner.db).await? {
            archive::compress_later(&self.inner, &row.session, row.number);
        }
        Ok(open.len())
    }

    /// Waits until every recorder is gone and everything closed is compressed: for the end of the broker.
    pub async fn settle(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// A recording's content; see [`read`].
    pub async fn read(&self, session: &SessionId, number: u32) -> Result<Content, ReadError> {
        read(&self.inner.db, &self.inner.root, session, number).await
    }
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
