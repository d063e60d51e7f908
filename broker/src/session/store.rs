//! Rows of sessions.

use super::{End, Live};
use crate::audit::{self, Actor, Event, Kind};
use crate::broker::Ctx;
use crate::db::{Db, Patience, Tx};
use crate::recording::store as recordings;
use daypass_protocol::api::{EndReason, PersonRef, Session, SessionState};
use daypass_protocol::ids::{DeviceId, PersonId, SessionId};
use daypass_protocol::time::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};
use std::str::FromStr;

pub async fn add(
    tx: &mut Tx,
    live: &Live,
    client_address: &str,
    client_kex: &str,
    device_kex: &str,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO session (id, request, person, device, login, state, started_at, client_address,
                              client_kex, device_kex, keep_ms)
         VALUES ($1, $2, $3, $4, $5, 'opening', $6, $7, $8, $9, $10)",
    )
    .bind(live.id.to_string())
    .bind(live.grant.to_string())
    .bind(live.person.to_string())
    .bind(live.device.to_string())
    .bind(live.login.to_string())
    .bind(now.as_millis())
    .bind(client_address.to_owned())
    .bind(client_kex.to_owned())
    .bind(device_kex.to_owned())
    .bind(live.limits.keep.map(|kept| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX)))
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The session may carry bytes from now on.
pub async fn opened(ctx: &Ctx, live: &Live, by: Actor) -> Result<(), sqlx::Error> {
    let now = ctx.clock.now();
    let mut tx = ctx.db.begin().await?;
    sqlx::query("UPDATE session SET state = 'open' WHERE id = $1 AND state = 'opening'")
        .bind(live.id.to_string())
        .execute(tx.conn())
        .await?;
    let event = Event::new(Kind::SessionOpened, by)
        .request(&live.grant)
        .session(&live.id)
        .device(&live.device)
        .detail(serde_json::json!({ "login": live.login, "ends_at": live.ends_at }));
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await
}

/// Writes the end down. The session itself is over already; a database that takes nothing, because it is away or
/// its disk is full, is tried again until it does. If the broker stops before that, its next start finds the
/// session interrupted.
pub async fn finish(ctx: &Ctx, live: &Live, end: &End) {
    let mut patience = Patience::default();
    while let Err(error) = end_row(&ctx.db, &live.id, end, Kind::SessionEnded, ctx.clock.now()).await {
        tracing::error!(%error, session = %live.id, "the end of a session was not written; it is tried again");
        tokio::select! {
            () = patience.wait() => {}
            () = ctx.stopping.cancelled() => return,
        }
    }
}

async fn end_row(db: &Db, id: &SessionId, end: &End, kind: Kind, now: Timestamp) -> Result<(), sqlx::Error> {
    let mut tx = db.begin().await?;
    let reason = serde_json::to_value(end.reason).unwrap_or_default();
    let done = sqlx::query(
        "UPDATE session SET state = 'ended', ended_at = $2, end_reason = $3, end_detail = $4
         WHERE id = $1 AND state <> 'ended'",
    )
    .bind(id.to_string())
    .bind(now.as_millis())
    .bind(reason.as_str().unwrap_or("failed").to_owned())
    .bind(end.detail.clone())
    .execute(tx.conn())
    .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    // What it was minted for is over: a device that comes back later is told so by the next bundle.
    sqlx::query("UPDATE certificate SET revoked_at = $2 WHERE session = $1 AND revoked_at IS NULL")
        .bind(id.to_string())
        .bind(now.as_millis())
        .execute(tx.conn())
        .await?;
    let event = Event::new(kind, Actor::Broker)
        .session(id)
        .detail(serde_json::json!({ "reason": end.reason, "detail": end.detail }));
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await
}

/// Sessions that a broker left open when it was not shut down in order. Run at start, before any session
/// can open.
pub async fn recover(db: &Db, now: Timestamp) -> Result<usize, sqlx::Error> {
    let rows = sqlx::query("SELECT id FROM session WHERE state <> 'ended'").fetch_all(db.pool()).await?;
    for row in &rows {
        let id: SessionId = text(row, "id")?;
        let end = End::with(EndReason::Interrupted, "the broker was not shut down in order");
        end_row(db, &id, &end, Kind::SessionInterrupted, now).await?;
    }
    Ok(rows.len())
}

fn unreadable(column: &str, why: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.to_string().into() }
}

fn text<T: FromStr<Err: std::fmt::Display>>(row: &AnyRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

fn word<T: DeserializeOwned>(text: String, column: &str) -> Result<T, sqlx::Error> {
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| unreadable(column, error))
}

/// Which sessions a list shows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub live: bool,
    pub person: Option<PersonId>,
    pub device: Option<DeviceId>,
    /// Part of the e-mail address, in any case.
    pub email: Option<String>,
    /// Those started before this one.
    pub before: Option<(Timestamp, SessionId)>,
}

const SESSION: &str = "session.id AS id, request, person, email, name, device, login, state, started_at,
    ended_at, end_reason, end_detail, client_address";

fn read(row: &AnyRow) -> Result<Session, sqlx::Error> {
    let end_reason: Option<String> = row.try_get("end_reason")?;
    Ok(Session {
        id: text(row, "id")?,
        request: text(row, "request")?,
        person: PersonRef {
            id: text(row, "person")?,
            email: row.try_get("email")?,
            name: row.try_get("name")?,
        },
        device: text(row, "device")?,
        login: text(row, "login")?,
        state: word::<SessionState>(row.try_get("state")?, "state")?,
        started_at: Timestamp(row.try_get("started_at")?),
        ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(Timestamp),
        end_reason: end_reason.map(|reason| word(reason, "end_reason")).transpose()?,
        end_detail: row.try_get("end_detail")?,
        client_address: row.try_get("client_address")?,
        recordings: Vec::new(),
    })
}

pub async fn find(conn: &mut AnyConnection, id: &SessionId) -> Result<Option<Session>, sqlx::Error> {
    let sql = format!(
        "SELECT {SESSION} FROM session JOIN person ON person.id = session.person WHERE session.id = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&mut *conn).await?;
    let Some(row) = row else { return Ok(None) };
    let mut session = read(&row)?;
    let rows = recordings::of_session_on(conn, id).await?;
    session.recordings = rows.into_iter().map(Into::into).collect();
    Ok(Some(session))
}

/// Up to `limit` sessions, newest first, without their recordings.
pub async fn list_newest(
    conn: &mut AnyConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Session>, sqlx::Error> {
    let (before_at, before_id) =
        filter.before.as_ref().map_or((i64::MAX, String::new()), |(at, id)| (at.as_millis(), id.to_string()));
    let sql = format!(
        "SELECT {SESSION} FROM session JOIN person ON person.id = session.person
         WHERE ($1 = 0 OR state <> 'ended') AND ($2 = '' OR person = $2) AND ($3 = '' OR device = $3)
           AND ($4 = '' OR LOWER(email) = $4)
           AND (started_at < $5 OR (started_at = $5 AND session.id < $6))
         ORDER BY started_at DESC, session.id DESC LIMIT $7"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(i64::from(filter.live))
        .bind(filter.person.as_ref().map_or(String::new(), ToString::to_string))
        .bind(filter.device.as_ref().map_or(String::new(), ToString::to_string))
        .bind(filter.email.as_deref().unwrap_or_default().to_lowercase())
        .bind(before_at)
        .bind(before_id)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.iter().map(read).collect()
}
