//! Checkpoints: from time to time the evidence key signs where the audit log stands.
//!
//! A chain alone can be made anew from any event on by whoever owns the database; a checkpoint cannot.

use super::store::{self, CheckpointRow};
use crate::clock::Clock;
use crate::db::Db;
use daypass_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Signs a text with the evidence key for [`daypass_protocol::signed::Purpose::Checkpoint`] and returns
/// the SSHSIG armour. The key stays with whoever made the closure.
pub type Sign = Arc<dyn Fn(&[u8]) -> Result<String, BoxError> + Send + Sync>;

/// What is signed, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub v: u32,
    /// The newest event.
    pub seq: i64,
    pub hash: String,
    pub at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the audit log cannot be read or written: {0}")]
    Db(#[from] sqlx::Error),
    #[error("the checkpoint cannot be signed: {0}")]
    Sign(#[source] BoxError),
    #[error("the checkpoint cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Signs the log as it stands; `None` when nothing is new since the last checkpoint.
pub async fn take(db: &Db, now: Timestamp, sign: &Sign) -> Result<Option<Checkpoint>, CheckpointError> {
    let mut connection = db.pool().acquire().await.map_err(CheckpointError::Db)?;
    let (seq, hash) = store::head(&mut connection).await?;
    if seq == 0 || store::newest_checkpoint(&mut connection).await? >= seq {
        return Ok(None);
    }
    let checkpoint = Checkpoint { v: 1, seq, hash, at: now };
    let body = serde_json::to_string(&checkpoint)?;
    let signature = sign(body.as_bytes()).map_err(CheckpointError::Sign)?;
    let row = CheckpointRow { seq, hash: checkpoint.hash.clone(), at: now, body, signature };
    Ok(store::insert_checkpoint(&mut connection, &row).await?.then_some(checkpoint))
}

#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// After this many events…
    pub events: i64,
    /// …or, when there is one, after this time.
    pub every: Duration,
    /// How often the log is looked at.
    pub look: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { events: 1000, every: Duration::from_mins(1), look: Duration::from_secs(1) }
    }
}

/// Takes checkpoints until `stop`, and a last one then. A failure is logged and tried again: events go
/// on being chained, and the next checkpoint covers them.
pub async fn run(db: Db, clock: Clock, sign: Sign, rhythm: Rhythm, stop: CancellationToken) {
    let mut last = tokio::time::Instant::now();
    while stop.run_until_cancelled(tokio::time::sleep(rhythm.look)).await.is_some() {
        if last.elapsed() < rhythm.every {
            match unsigned(&db).await {
                Ok(events) if events < rhythm.events => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "the audit log cannot be looked at");
                    continue;
                }
            }
        }
        last = tokio::time::Instant::now();
        report(take(&db, clock.now(), &sign).await);
    }
    report(take(&db, clock.now(), &sign).await);
}

async fn unsigned(db: &Db) -> Result<i64, sqlx::Error> {
    let mut connection = db.pool().acquire().await?;
    let (seq, _) = store::head(&mut connection).await?;
    Ok(seq - store::newest_checkpoint(&mut connection).await?)
}

fn report(result: Result<Option<Checkpoint>, CheckpointError>) {
    match result {
        Ok(Some(checkpoint)) => tracing::debug!(seq = checkpoint.seq, "checkpoint signed"),
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "no checkpoint was taken"),
    }
}
