//! Reading the audit log.

use super::{Stored, link};
use crate::db::Db;
use daypass_protocol::ids::SessionId;
use daypass_protocol::time::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

/// An event as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: i64,
    pub at: Timestamp,
    pub kind: String,
    pub actor: String,
    pub request: Option<String>,
    pub session: Option<String>,
    pub device: Option<String>,
    /// The JSON text, exactly as hashed.
    pub detail: String,
    pub prev_hash: String,
    pub hash: String,
}

impl Entry {
    /// The hash that these fields have after `prev_hash`.
    pub fn expected_hash(&self, prev_hash: &str) -> String {
        link(
            prev_hash,
            &Stored {
                seq: self.seq,
                at: self.at.as_millis(),
                kind: &self.kind,
                actor: &self.actor,
                request: self.request.as_deref(),
                session: self.session.as_deref(),
                device: self.device.as_deref(),
                detail: &self.detail,
            },
        )
    }
}

fn entry(row: &AnyRow) -> Result<Entry, sqlx::Error> {
    Ok(Entry {
        seq: row.try_get(0)?,
        at: Timestamp(row.try_get(1)?),
        kind: row.try_get(2)?,
        actor: row.try_get(3)?,
        request: row.try_get(4)?,
        session: row.try_get(5)?,
        device: row.try_get(6)?,
        detail: row.try_get(7)?,
        prev_hash: row.try_get(8)?,
        hash: row.try_get(9)?,
    })
}

/// The events of a session, oldest first.
pub async fn of_session(db: &Db, session: &SessionId) -> Result<Vec<Entry>, sqlx::Error> {
    sqlx::query(
        "SELECT seq, at, kind, actor, request, session, device, detail, prev_hash, hash
         FROM audit_event WHERE session = $1 ORDER BY seq",
    )
    .bind(session.as_str())
    .fetch_all(db.pool())
    .await?
    .iter()
    .map(entry)
    .collect()
}

/// Up to `limit` events after `seq`, oldest first.
pub async fn after(connection: &mut AnyConnection, seq: i64, limit: i64) -> Result<Vec<Entry>, sqlx::Error> {
    sqlx::query(
        "SELECT seq, at, kind, actor, request, session, device, detail, prev_hash, hash
         FROM audit_event WHERE seq > $1 ORDER BY seq LIMIT $2",
    )
    .bind(seq)
    .bind(limit)
    .fetch_all(connection)
    .await?
    .iter()
    .map(entry)
    .collect()
}

/// The newest event's place and hash; (0, zeros) for an empty log.
pub async fn head(connection: &mut AnyConnection) -> Result<(i64, String), sqlx::Error> {
    let row = sqlx::query("SELECT seq, hash FROM audit_head WHERE one = 1").fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// A signed statement that the log was so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    pub seq: i64,
    pub hash: String,
    pub at: Timestamp,
    pub body: String,
    pub signature: String,
}

/// False when there is one at this place already.
pub async fn insert_checkpoint(
    connection: &mut AnyConnection,
    row: &CheckpointRow,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "INSERT INTO audit_checkpoint (seq, hash, at, body, signature) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(row.seq)
    .bind(row.hash.as_str())
    .bind(row.at.as_millis())
    .bind(row.body.as_str())
    .bind(row.signature.as_str())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// 0 when there is none.
pub async fn newest_checkpoint(connection: &mut AnyConnection) -> Result<i64, sqlx::Error> {
    let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) FROM audit_checkpoint").fetch_one(connection).await?;
    row.try_get(0)
}

pub async fn checkpoints(connection: &mut AnyConnection) -> Result<Vec<CheckpointRow>, sqlx::Error> {
    sqlx::query("SELECT seq, hash, at, body, signature FROM audit_checkpoint ORDER BY seq")
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| {
            Ok(CheckpointRow {
                seq: row.try_get(0)?,
                hash: row.try_get(1)?,
                at: Timestamp(row.try_get(2)?),
                body: row.try_get(3)?,
                signature: row.try_get(4)?,
            })
        })
        .collect()
}
