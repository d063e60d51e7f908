//! Rows of requests, answers and grants.

use super::{Scope, StoredGrant, StoredRequest};
use crate::db::Tx;
use crate::policy::{DeviceFacts, Subject};
use daypass_protocol::api::{CraClass, DeviceState, GrantState, PersonRef, RequestState, Verdict};
use daypass_protocol::channel::ChannelSet;
use daypass_protocol::ids::{DeviceId, Login, PersonId, RequestId};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};
use std::str::FromStr;
use std::time::Duration;

/// A stored value that does not read: a fault of the database, never of the caller.
fn unreadable(column: &str, why: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.to_string().into() }
}

fn text<T: FromStr<Err: std::fmt::Display>>(row: &AnyRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

/// An enum whose serde form is its text in the database.
fn word<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| unreadable(column, error))
}

fn json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error))
}

/// Where forwards may lead; nowhere, where nothing is written.
fn targets(row: &AnyRow) -> Result<Vec<ForwardTarget>, sqlx::Error> {
    let list: String = row.try_get("forward_targets")?;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    ForwardTarget::list(&list).map_err(|error| unreadable("forward_targets", error))
}

fn time(row: &AnyRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get(column).map(Timestamp)
}

fn span(row: &AnyRow, column: &str) -> Result<Duration, sqlx::Error> {
    let ms: i64 = row.try_get(column)?;
    u64::try_from(ms).map(Duration::from_millis).map_err(|error| unreadable(column, error))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn list(items: &[String]) -> String {
    serde_json::Value::from(items.to_vec()).to_string()
}

const REQUEST: &str = "id, person, device, login, channels, duration_ms, reason, ticket, emergency, state,
    asked_at, lapses_at, why, approver_teams, command, forward_targets";

fn read_request(row: &AnyRow) -> Result<StoredRequest, sqlx::Error> {
    Ok(StoredRequest {
        id: text(row, "id")?,
        person: text(row, "person")?,
        device: text(row, "device")?,
        login: text(row, "login")?,
        channels: text(row, "channels")?,
        duration: span(row, "duration_ms")?,
        reason: row.try_get("reason")?,
        ticket: row.try_get("ticket")?,
        emergency: row.try_get::<i64, _>("emergency")? != 0,
        state: word(row, "state")?,
        asked_at: time(row, "asked_at")?,
        lapses_at: time(row, "lapses_at")?,
        why: json(row, "why")?,
        approver_teams: json(row, "approver_teams")?,
        command: row.try_get("command")?,
        forward_targets: targets(row)?,
    })
}

pub async fn add(tx: &mut Tx, request: &StoredRequest) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO request (id, person, device, login, channels, duration_ms, reason, ticket, emergency,
                              state, asked_at, lapses_at, why, approver_teams, command, forward_targets)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending', $10, $11, $12, $13, $14, $15)",
    )
    .bind(request.id.to_string())
    .bind(request.person.to_string())
    .bind(request.device.to_string())
    .bind(request.login.to_string())
    .bind(request.channels.to_string())
    .bind(millis(request.duration))
    .bind(request.reason.clone())
    .bind(request.ticket.clone())
    .bind(i64::from(request.emergency))
    .bind(request.asked_at.as_millis())
    .bind(request.lapses_at.as_millis())
    .bind(list(&request.why))
    .bind(list(&request.approver_teams))
    .bind(request.command.clone())
    .bind(ForwardTarget::listed(&request.forward_targets))
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn find(conn: &mut AnyConnection, id: &RequestId) -> Result<Option<StoredRequest>, sqlx::Error> {
    let sql = format!("SELECT {REQUEST} FROM request WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(read_request).transpose()
}

/// As [`find`], for a transaction that will decide. The update that changes nothing takes the row's lock,
/// so that two answers to one request are judged one after the other.
pub async fn find_for_update(tx: &mut Tx, id: &RequestId) -> Result<Option<StoredRequest>, sqlx::Error> {
    let sql = format!("UPDATE request SET id = id WHERE id = $1 RETURNING {REQUEST}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(tx.conn()).await?;
    row.as_ref().map(read_request).transpose()
}

/// Which requests a list shows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub state: Option<RequestState>,
    pub person: Option<PersonId>,
    pub device: Option<DeviceId>,
    /// Those asked before this one.
    pub before: Option<(Timestamp, RequestId)>,
}

/// Up to `limit` requests, newest first.
pub async fn list_newest(
    conn: &mut AnyConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<StoredRequest>, sqlx::Error> {
    let any = String::new();
    let (before_at, before_id) =
        filter.before.as_ref().map_or((i64::MAX, String::new()), |(at, id)| (at.as_millis(), id.to_string()));
    let sql = format!(
        "SELECT {REQUEST} FROM request
         WHERE ($1 = '' OR state = $1) AND ($2 = '' OR person = $2) AND ($3 = '' OR device = $3)
           AND (asked_at < $4 OR (asked_at = $4 AND id < $5))
         ORDER BY asked_at DESC, id DESC LIMIT $6"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(filter.state.map_or("", state_word).to_owned())
        .bind(filter.person.as_ref().map_or(any.clone(), ToString::to_string))
        .bind(filter.device.as_ref().map_or(any, ToString::to_string))
        .bind(before_at)
        .bind(before_id)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    rows.iter().map(read_request).collect()
}

pub const fn state_word(state: RequestState) -> &'static str {
    match state {
        RequestState::Pending => "pending",
        RequestState::Granted => "granted",
        RequestState::Denied => "denied",
        RequestState::Cancelled => "cancelled",
        RequestState::Lapsed => "lapsed",
    }
}

pub async fn count_pending(conn: &mut AnyConnection, person: &PersonId) -> Result<i64, sqlx::Error> {
    sqlx::query("SELECT COUNT(*) FROM request WHERE person = $1 AND state = 'pending'")
        .bind(person.to_string())
        .fetch_one(conn)
        .await?
        .try_get(0)
}

/// Moves a pending request on; false if it was not pending any more.
pub async fn decide(
    tx: &mut Tx,
    id: &RequestId,
    state: RequestState,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let done =
        sqlx::query("UPDATE request SET state = $2, decided_at = $3 WHERE id = $1 AND state = 'pending'")
            .bind(id.to_string())
            .bind(state_word(state))
            .bind(now.as_millis())
            .execute(tx.conn())
            .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn set_approvers(
    tx: &mut Tx,
    id: &RequestId,
    why: &[String],
    teams: &[String],
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE request SET why = $2, approver_teams = $3 WHERE id = $1")
        .bind(id.to_string())
        .bind(list(why))
        .bind(list(teams))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Pending requests whose time to be answered is over.
pub async fn overdue(conn: &mut AnyConnection, now: Timestamp) -> Result<Vec<RequestId>, sqlx::Error> {
    let rows = sqlx::query("SELECT id FROM request WHERE state = 'pending' AND lapses_at <= $1")
        .bind(now.as_millis())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| text(row, "id")).collect()
}

/// One person's stored answer.
#[derive(Clone, Debug)]
pub struct StoredAnswer {
    pub by: PersonRef,
    pub at: Timestamp,
    pub verdict: Verdict,
    pub comment: Option<String>,
    pub teams: Vec<String>,
    pub duration: Option<Duration>,
    pub channels: Option<ChannelSet>,
}

pub async fn add_answer(tx: &mut Tx, request: &RequestId, answer: &StoredAnswer) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO answer (request, person, at, verdict, comment, teams, duration_ms, channels)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(request.to_string())
    .bind(answer.by.id.to_string())
    .bind(answer.at.as_millis())
    .bind(match answer.verdict {
        Verdict::Approve => "approve",
        Verdict::Deny => "deny",
    })
    .bind(answer.comment.clone())
    .bind(list(&answer.teams))
    .bind(answer.duration.map(millis))
    .bind(answer.channels.as_ref().map(ToString::to_string))
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn answers(
    conn: &mut AnyConnection,
    request: &RequestId,
) -> Result<Vec<StoredAnswer>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT answer.person AS person, email, name, at, verdict, comment, answer.teams AS teams,
                duration_ms, channels
         FROM answer JOIN person ON person.id = answer.person
         WHERE request = $1 ORDER BY at, answer.person",
    )
    .bind(request.to_string())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let narrowed: Option<i64> = row.try_get("duration_ms")?;
            let channels: Option<String> = row.try_get("channels")?;
            Ok(StoredAnswer {
                by: PersonRef {
                    id: text(row, "person")?,
                    email: row.try_get("email")?,
                    name: row.try_get("name")?,
                },
                at: time(row, "at")?,
                verdict: word(row, "verdict")?,
                comment: row.try_get("comment")?,
                teams: json(row, "teams")?,
                duration: narrowed.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
                channels: channels
                    .map(|text| text.parse())
                    .transpose()
                    .map_err(|error| unreadable("channels", error))?,
            })
        })
        .collect()
}

const GRANT: &str = "request, person, device, login, channels, command, forward_targets, starts_at, ends_at,
    state, ended_by";

fn read_grant(row: &AnyRow) -> Result<StoredGrant, sqlx::Error> {
    Ok(StoredGrant {
        request: text(row, "request")?,
        person: text(row, "person")?,
        device: text(row, "device")?,
        login: text(row, "login")?,
        scope: Scope {
            channels: text(row, "channels")?,
            command: row.try_get("command")?,
            targets: targets(row)?,
        },
        starts_at: time(row, "starts_at")?,
        ends_at: time(row, "ends_at")?,
        state: word(row, "state")?,
        ended_by: row.try_get("ended_by")?,
    })
}

pub async fn add_grant(tx: &mut Tx, grant: &StoredGrant) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO access_grant (request, person, device, login, channels, starts_at, ends_at, command,
                                   forward_targets, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'live')",
    )
    .bind(grant.request.to_string())
    .bind(grant.person.to_string())
    .bind(grant.device.to_string())
    .bind(grant.login.to_string())
    .bind(grant.scope.channels.to_string())
    .bind(grant.starts_at.as_millis())
    .bind(grant.ends_at.as_millis())
    .bind(grant.scope.command.clone())
    .bind(ForwardTarget::listed(&grant.scope.targets))
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn grant(conn: &mut AnyConnection, id: &RequestId) -> Result<Option<StoredGrant>, sqlx::Error> {
    let sql = format!("SELECT {GRANT} FROM access_grant WHERE request = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(read_grant).transpose()
}

/// Grants of (person, device, login) that are live now, the one that ends last first.
pub async fn live_grants(
    conn: &mut AnyConnection,
    person: &PersonId,
    device: &DeviceId,
    login: &Login,
    now: Timestamp,
) -> Result<Vec<StoredGrant>, sqlx::Error> {
    let sql = format!(
        "SELECT {GRANT} FROM access_grant
         WHERE person = $1 AND device = $2 AND login = $3 AND state = 'live' AND starts_at <= $4 AND ends_at > $4
         ORDER BY ends_at DESC"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(person.to_string())
        .bind(device.to_string())
        .bind(login.to_string())
        .bind(now.as_millis())
        .fetch_all(conn)
        .await?;
    rows.iter().map(read_grant).collect()
}

/// Ends a live grant; false if it was not live any more.
pub async fn end_grant(
    tx: &mut Tx,
    id: &RequestId,
    state: GrantState,
    by: &str,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let state = match state {
        GrantState::Live => "live",
        GrantState::Expired => "expired",
        GrantState::Revoked => "revoked",
        GrantState::Closed => "closed",
    };
    let done = sqlx::query(
        "UPDATE access_grant SET state = $2, ended_at = $3, ended_by = $4 WHERE request = $1 AND state = 'live'",
    )
    .bind(id.to_string())
    .bind(state)
    .bind(now.as_millis())
    .bind(by.to_owned())
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Live grants whose window is over.
pub async fn expired_grants(conn: &mut AnyConnection, now: Timestamp) -> Result<Vec<RequestId>, sqlx::Error> {
    let rows = sqlx::query("SELECT request FROM access_grant WHERE state = 'live' AND ends_at <= $1")
        .bind(now.as_millis())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| text(row, "request")).collect()
}

/// A person as policy is told, from the last sign-in.
pub async fn subject(conn: &mut AnyConnection, id: &PersonId) -> Result<Option<Subject>, sqlx::Error> {
    let row = sqlx::query("SELECT id, email, teams, mfa, signed_in_at FROM person WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(conn)
        .await?;
    row.map(|row| {
        Ok(Subject {
            id: text(&row, "id")?,
            email: row.try_get("email")?,
            teams: json(&row, "teams")?,
            mfa: row.try_get::<i64, _>("mfa")? != 0,
            signed_in_at: time(&row, "signed_in_at")?,
        })
    })
    .transpose()
}

pub async fn person_ref(conn: &mut AnyConnection, id: &PersonId) -> Result<PersonRef, sqlx::Error> {
    let row = sqlx::query("SELECT id, email, name FROM person WHERE id = $1")
        .bind(id.to_string())
        .fetch_one(conn)
        .await?;
    Ok(PersonRef { id: text(&row, "id")?, email: row.try_get("email")?, name: row.try_get("name")? })
}

/// A device as policy is told.
pub async fn device_facts(
    conn: &mut AnyConnection,
    id: &DeviceId,
) -> Result<Option<DeviceFacts>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT device.id AS id, product_line, cra_class, state, labels, forward_targets
         FROM device JOIN product_line ON product_line.name = device.product_line WHERE device.id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(DeviceFacts {
            id: text(&row, "id")?,
            product_line: text(&row, "product_line")?,
            cra_class: word::<CraClass>(&row, "cra_class")?,
            state: word::<DeviceState>(&row, "state")?,
            labels: json(&row, "labels")?,
            forward_targets: targets(&row)?,
        })
    })
    .transpose()
}
