//! Rows of the table `recording`.

use crate::db::{Db, Tx};
use daypass_protocol::api;
use daypass_protocol::ids::SessionId;
use daypass_protocol::time::Timestamp;
use sqlx::Row as _;
use sqlx::any::AnyRow;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    Closed,
    /// The recorder failed or the broker stopped before the end; what was sealed stands.
    Interrupted,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Interrupted => "interrupted",
        }
    }
}

pub fn kind_as_str(kind: api::RecordingKind) -> &'static str {
    match kind {
        api::RecordingKind::Events => "events",
        api::RecordingKind::Asciicast => "asciicast",
        api::RecordingKind::Output => "output",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    pub session: SessionId,
    /// 0 is the events file; others are their channel's number plus one.
    pub number: i64,
    pub kind: api::RecordingKind,
    pub channel: Option<i64>,
    /// Relative to the recordings folder, without the `.zst` it gets when it is compressed.
    pub file: String,
    pub state: State,
    pub started_at: Timestamp,
    pub sealed_bytes: i64,
    pub sealed_sha256: String,
    /// SHA-256 of the compressed file, once there is one.
    pub stored_sha256: Option<String>,
    /// Its time was over; the row stays.
    pub removed_at: Option<Timestamp>,
    /// The files are gone too.
    pub files_gone: bool,
}

impl From<Recording> for api::Recording {
    fn from(row: Recording) -> Self {
        let closed = row.state == State::Closed;
        Self {
            number: u32::try_from(row.number).unwrap_or(u32::MAX),
            kind: row.kind,
            channel: row.channel.and_then(|number| u32::try_from(number).ok()),
            bytes: u64::try_from(row.sealed_bytes).unwrap_or(0),
            sha256: closed.then_some(row.sealed_sha256),
            closed: row.state != State::Open,
            removed_at: row.removed_at,
        }
    }
}

const COLUMNS: &str = "session, number, kind, channel, file, state, started_at, sealed_bytes, sealed_sha256, \
                       stored_sha256, removed_at, files_gone_at";

fn read(row: &AnyRow) -> Result<Recording, sqlx::Error> {
    let kind: String = row.try_get(2)?;
    let state: String = row.try_get(5)?;
    let unknown = |what: &str, text: &str| sqlx::Error::Decode(format!("unknown {what} {text:?}").into());
    Ok(Recording {
        session: row
            .try_get::<String, _>(0)?
            .parse()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        number: row.try_get(1)?,
        kind: match kind.as_str() {
            "events" => api::RecordingKind::Events,
            "asciicast" => api::RecordingKind::Asciicast,
            "output" => api::RecordingKind::Output,
            _ => return Err(unknown("kind of recording", &kind)),
        },
        channel: row.try_get(3)?,
        file: row.try_get(4)?,
        state: match state.as_str() {
            "open" => State::Open,
            "closed" => State::Closed,
            "interrupted" => State::Interrupted,
            _ => return Err(unknown("state of a recording", &state)),
        },
        started_at: Timestamp(row.try_get(6)?),
        sealed_bytes: row.try_get(7)?,
        sealed_sha256: row.try_get(8)?,
        stored_sha256: row.try_get(9)?,
        removed_at: row.try_get::<Option<i64>, _>(10)?.map(Timestamp),
        files_gone: row.try_get::<Option<i64>, _>(11)?.is_some(),
    })
}

pub async fn insert(tx: &mut Tx, row: &Recording) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO recording (session, number, kind, channel, file, state, started_at, sealed_bytes, sealed_sha256)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(row.session.as_str())
    .bind(row.number)
    .bind(kind_as_str(row.kind))
    .bind(row.channel)
    .bind(row.file.as_str())
    .bind(row.state.as_str())
    .bind(row.started_at.as_millis())
    .bind(row.sealed_bytes)
    .bind(row.sealed_sha256.as_str())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Enters a seal of an open recording; a recording that is not open is `RowNotFound`.
pub async fn seal(
    tx: &mut Tx,
    session: &SessionId,
    number: i64,
    bytes: i64,
    sha256: &str,
) -> Result<(), sqlx::Error> {
    let done = sqlx::query(
        "UPDATE recording SET sealed_bytes = $3, sealed_sha256 = $4
         WHERE session = $1 AND number = $2 AND state = 'open' AND sealed_bytes <= $3",
    )
    .bind(session.as_str())
    .bind(number)
    .bind(bytes)
    .bind(sha256)
    .execute(tx.conn())
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// Takes an open recording to its last state; false when it was not open any more.
pub async fn end(
    tx: &mut Tx,
    session: &SessionId,
    number: i64,
    state: State,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE recording SET state = $3, closed_at = $4 WHERE session = $1 AND number = $2 AND state = 'open'",
    )
    .bind(session.as_str())
    .bind(number)
    .bind(state.as_str())
    .bind(at.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A compressed recording as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub sha256: String,
    pub bytes: u64,
}

pub async fn set_stored(
    tx: &mut Tx,
    session: &SessionId,
    number: i64,
    stored: &Stored,
) -> Result<(), sqlx::Error> {
    let sql = "UPDATE recording SET stored_sha256 = $3, stored_bytes = $4 WHERE session = $1 AND number = $2";
    sqlx::query(sql)
        .bind(session.as_str())
        .bind(number)
        .bind(stored.sha256.as_str())
        .bind(i64::try_from(stored.bytes).unwrap_or(i64::MAX))
        .execute(tx.conn())
        .await?;
    Ok(())
}

async fn select(db: &Db, rest: &str, session: Option<&SessionId>) -> Result<Vec<Recording>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM recording {rest} ORDER BY session, number");
    let query = sqlx::query(sqlx::AssertSqlSafe(sql));
    let query = match session {
        Some(session) => query.bind(session.as_str()),
        None => query,
    };
    query.fetch_all(db.pool()).await?.iter().map(read).collect()
}

/// What all recordings take on the disk: of a compressed one its compressed size.
pub async fn total_bytes(db: &Db) -> Result<u64, sqlx::Error> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(COALESCE(stored_bytes, sealed_bytes)), 0) AS BIGINT) FROM recording
         WHERE files_gone_at IS NULL",
    )
    .fetch_one(db.pool())
    .await?;
    Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
}

/// The recordings of a session, the events file first.
pub async fn of_session(db: &Db, session: &SessionId) -> Result<Vec<Recording>, sqlx::Error> {
    select(db, "WHERE session = $1", Some(session)).await
}

/// As [`of_session`], on a connection of the caller's.
pub async fn of_session_on(
    connection: &mut sqlx::AnyConnection,
    session: &SessionId,
) -> Result<Vec<Recording>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM recording WHERE session = $1 ORDER BY number");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(session.as_str()).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

pub async fn get(db: &Db, session: &SessionId, number: u32) -> Result<Option<Recording>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM recording WHERE session = $1 AND number = $2");
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(session.as_str())
        .bind(i64::from(number))
        .fetch_optional(db.pool())
        .await?
        .as_ref()
        .map(read)
        .transpose()
}

/// Those that no recorder closed.
pub async fn open_ones(db: &Db) -> Result<Vec<Recording>, sqlx::Error> {
    select(db, "WHERE state = 'open'", None).await
}

/// Those that are closed and not compressed yet.
pub async fn uncompressed(db: &Db) -> Result<Vec<Recording>, sqlx::Error> {
    select(db, "WHERE state = 'closed' AND stored_sha256 IS NULL AND removed_at IS NULL", None).await
}

/// Those whose files are still to be removed.
pub async fn to_be_gone(db: &Db) -> Result<Vec<Recording>, sqlx::Error> {
    select(db, "WHERE removed_at IS NOT NULL AND files_gone_at IS NULL", None).await
}

/// A session whose recordings were kept long enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub session: SessionId,
    pub ended_at: Timestamp,
    /// What policy said; otherwise it was the configuration.
    pub keep_ms: Option<i64>,
}

/// Up to `limit` sessions that ended long enough ago: as policy said for each, and before `else_before` where
/// it said nothing. One with a recording that is still open is not among them.
pub async fn kept_long_enough(
    db: &Db,
    now: Timestamp,
    else_before: Option<Timestamp>,
    limit: i64,
) -> Result<Vec<Kept>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, ended_at, keep_ms FROM session
         WHERE state = 'ended'
           AND ((keep_ms IS NOT NULL AND ended_at <= $1 - keep_ms) OR (keep_ms IS NULL AND ended_at <= $2))
           AND EXISTS (SELECT 1 FROM recording WHERE recording.session = session.id AND removed_at IS NULL)
           AND NOT EXISTS (SELECT 1 FROM recording WHERE recording.session = session.id AND recording.state = 'open')
         ORDER BY ended_at LIMIT $3",
    )
    .bind(now.as_millis())
    .bind(else_before.map_or(i64::MIN, Timestamp::as_millis))
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &AnyRow| {
        Ok(Kept {
            session: row
                .try_get::<String, _>(0)?
                .parse()
                .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            ended_at: Timestamp(row.try_get(1)?),
            keep_ms: row.try_get(2)?,
        })
    };
    rows.iter().map(read).collect()
}

/// Marks the recordings of a session removed; how many there were.
pub async fn set_removed(tx: &mut Tx, session: &SessionId, now: Timestamp) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE recording SET removed_at = $2 WHERE session = $1 AND removed_at IS NULL AND state <> 'open'",
    )
    .bind(session.as_str())
    .bind(now.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}

pub async fn set_gone(
    tx: &mut Tx,
    session: &SessionId,
    number: i64,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE recording SET files_gone_at = $3 WHERE session = $1 AND number = $2")
        .bind(session.as_str())
        .bind(number)
        .bind(now.as_millis())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// All, on a connection of the caller's: `verify` reads everything in one snapshot.
pub async fn all(connection: &mut sqlx::AnyConnection) -> Result<Vec<Recording>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM recording ORDER BY session, number");
    sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?.iter().map(read).collect()
}
