//! `daypass-broker verify`: is the evidence whole?
//!
//! Walks the audit log from its first event, checks every checkpoint, and compares what the log says
//! with the sessions and the recordings that are there. Whatever does not fit is a [`Finding`].

mod chain;
mod files;
#[cfg(test)]
mod tests;

use crate::db::Db;
use crate::recording::store as recordings;
use daypass_protocol::ssh_key::PublicKey;
use sqlx::{Executor as _, Row as _};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    #[error("audit log: event {expected} is missing; after {before} comes {found}")]
    EventMissing { before: i64, expected: i64, found: i64 },
    #[error("audit log: event {0} was changed: its hash is not that of its text and the event before")]
    EventChanged(i64),
    #[error("audit log: the log ends at event {last}, but its head says {head}")]
    HeadDiffers { last: i64, head: i64 },
    #[error("audit log: the checkpoint at {0} is not signed by an evidence key: {1}")]
    CheckpointSignature(i64, String),
    #[error("audit log: the checkpoint at {0} says something else than the log")]
    CheckpointDiffers(i64),
    #[error("audit log: a checkpoint signs event {0}, which is not in the log any more")]
    CheckpointBeyondLog(i64),
    #[error("session {0}: the audit log has it, the store does not")]
    SessionMissing(String),
    #[error("session {0}: the store has it, the audit log does not")]
    SessionUnknown(String),
    #[error("session {0}: it was opened and has no recording")]
    SessionUnrecorded(String),
    #[error("session {0}: the store says {1}, the audit log says {2}")]
    SessionState(String, String, &'static str),
    #[error("recording {1} of session {0}: the audit log has it, the store does not")]
    RecordingMissing(String, i64),
    #[error("recording {1} of session {0}: the store has it, the audit log does not")]
    RecordingUnknown(String, i64),
    #[error("recording {1} of session {0}: the row differs from the audit log: {2}")]
    RecordingRow(String, i64, &'static str),
    #[error("recording {1} of session {0}: {3}: {2}")]
    File(String, i64, String, String),
    #[error("file {0}: no recording knows it")]
    FileUnknown(String),
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub events: u64,
    pub checkpoints: u64,
    /// Events after the newest checkpoint: chained, not signed yet.
    pub unsigned: u64,
    pub sessions: u64,
    pub recordings: u64,
    /// Of these, recordings that were kept as long as they had to be, and removed.
    pub removed: u64,
    pub bytes: u64,
    /// Bytes after the newest seal of live and interrupted recordings: there, and not provable.
    pub unsealed_bytes: u64,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// 0 when all is whole, 1 when something was found.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_clean())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "FOUND  {finding}")?;
        }
        writeln!(
            f,
            "{} audit events, {} checkpoints ({} events since the newest)",
            self.events, self.checkpoints, self.unsigned
        )?;
        writeln!(
            f,
            "{} sessions, {} recordings, {} bytes ({} of them not sealed)",
            self.sessions, self.recordings, self.bytes, self.unsealed_bytes
        )?;
        if self.removed > 0 {
            writeln!(f, "{} recordings were removed when their time was over", self.removed)?;
        }
        match self.findings.len() {
            0 => writeln!(f, "The evidence is whole."),
            1 => writeln!(f, "The evidence is not whole: 1 finding."),
            count => writeln!(f, "The evidence is not whole: {count} findings."),
        }
    }
}

/// The check itself could not be made; nothing is said about the evidence.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the store cannot be read: {0}")]
    Db(#[from] sqlx::Error),
    #[error("the recordings folder cannot be read: {0}")]
    Folder(std::io::Error),
}

/// A recording as the audit log tells it.
#[derive(Debug, Default)]
struct Told {
    started: bool,
    file: String,
    /// Length and hash of each seal, as they came; the end's too.
    seals: Vec<(u64, String)>,
    closed: bool,
    interrupted: bool,
    removed: bool,
}

/// A session as the audit log tells it.
#[derive(Debug, Default)]
struct SessionTold {
    opened: bool,
    ended: bool,
}

type RecordingKey = (String, i64);

/// Checks everything. Works beside a running broker: log and rows are read in one snapshot, and the
/// files after it, which only grow.
pub async fn run(db: &Db, evidence: &[PublicKey], root: &Path) -> Result<Report, VerifyError> {
    let mut report = Report::default();
    let mut snapshot = db.pool().begin().await?;
    if !db.is_sqlite() {
        snapshot.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    }
    let (sessions, told) = chain::walk(&mut snapshot, evidence, &mut report).await?;
    let rows = recordings::all(&mut snapshot).await?;
    let session_rows: BTreeMap<String, String> = sqlx::query("SELECT id, state FROM session ORDER BY id")
        .fetch_all(&mut *snapshot)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    snapshot.commit().await?;

    compare_sessions(&sessions, &session_rows, &told, &mut report);
    files::check(db, root, rows, &told, &mut report).await?;
    Ok(report)
}

fn compare_sessions(
    told: &BTreeMap<String, SessionTold>,
    rows: &BTreeMap<String, String>,
    recordings: &BTreeMap<RecordingKey, Told>,
    report: &mut Report,
) {
    report.sessions = rows.len() as u64;
    for (id, session) in told {
        if session.opened && !recordings.get(&(id.clone(), 0)).is_some_and(|events| events.started) {
            report.findings.push(Finding::SessionUnrecorded(id.clone()));
        }
        match rows.get(id) {
            None => report.findings.push(Finding::SessionMissing(id.clone())),
            Some(state) if (state == "ended") != session.ended => {
                let said = if session.ended { "it ended" } else { "it has no end" };
                report.findings.push(Finding::SessionState(id.clone(), state.clone(), said));
            }
            Some(_) => {}
        }
    }
    for id in rows.keys().filter(|id| !told.contains_key(*id)) {
        report.findings.push(Finding::SessionUnknown(id.clone()));
    }
}
