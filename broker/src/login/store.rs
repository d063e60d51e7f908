//! The rows of sign-in: people, attempts, browser sessions, CLI sign-ins and token families.

use super::oidc::Identity;
use super::person::VerifiedPerson;
use crate::db::Tx;
use daypass_protocol::ids::PersonId;
use daypass_protocol::time::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

/// A row that this program did not write like this.
fn corrupt(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

/// What a browser was sent to the identity provider with.
#[derive(Debug)]
pub struct Attempt {
    pub nonce: String,
    pub pkce_verifier: String,
    pub browser_hash: String,
    pub next_path: String,
    pub expires_at: Timestamp,
}

pub async fn keep_attempt(tx: &mut Tx, state_hash: &str, attempt: &Attempt) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO sign_in_attempt (state_hash, nonce, pkce_verifier, browser_hash, next_path, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(state_hash)
    .bind(&attempt.nonce)
    .bind(&attempt.pkce_verifier)
    .bind(&attempt.browser_hash)
    .bind(&attempt.next_path)
    .bind(attempt.expires_at.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Takes an attempt out: of two callbacks with one state, one finds it.
pub async fn take_attempt(tx: &mut Tx, state_hash: &str) -> Result<Option<Attempt>, sqlx::Error> {
    let row = sqlx::query(
        "DELETE FROM sign_in_attempt WHERE state_hash = $1
         RETURNING nonce, pkce_verifier, browser_hash, next_path, expires_at",
    )
    .bind(state_hash)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| {
        Ok(Attempt {
            nonce: row.try_get(0)?,
            pkce_verifier: row.try_get(1)?,
            browser_hash: row.try_get(2)?,
            next_path: row.try_get(3)?,
            expires_at: Timestamp(row.try_get(4)?),
        })
    })
    .transpose()
}

/// Removes what has expired. Codes of the CLI stay a little, so that it hears `expired_token`; families
/// stay, for they are who signed in when.
pub async fn sweep(tx: &mut Tx, now: Timestamp) -> Result<(), sqlx::Error> {
    for (sql, before) in [
        ("DELETE FROM sign_in_attempt WHERE expires_at <= $1", now),
        ("DELETE FROM browser_session WHERE expires_at <= $1", now),
        ("DELETE FROM cli_sign_in WHERE expires_at <= $1", now - std::time::Duration::from_mins(10)),
    ] {
        sqlx::query(sql).bind(before.as_millis()).execute(tx.conn()).await?;
    }
    Ok(())
}

/// Writes down who signed in. A person who was here before keeps their id: it is theirs by issuer and
/// subject, whatever happens to their address.
pub async fn upsert_person(
    tx: &mut Tx,
    identity: &Identity,
    fresh: &PersonId,
    now: Timestamp,
) -> Result<PersonId, sqlx::Error> {
    let teams = serde_json::to_string(&identity.teams).map_err(corrupt)?;
    let row = sqlx::query(
        "INSERT INTO person (id, issuer, subject, email, name, teams, mfa, first_seen_at, signed_in_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (issuer, subject) DO UPDATE SET email = excluded.email, name = excluded.name,
             teams = excluded.teams, mfa = excluded.mfa, signed_in_at = excluded.signed_in_at
         RETURNING id",
    )
    .bind(fresh.as_str())
    .bind(&identity.issuer)
    .bind(&identity.subject)
    .bind(&identity.email)
    .bind(&identity.name)
    .bind(teams)
    .bind(i64::from(identity.mfa))
    .bind(now.as_millis())
    .bind(identity.signed_in_at.as_millis())
    .fetch_one(tx.conn())
    .await?;
    row.try_get::<String, _>(0)?.parse().map_err(|error| corrupt(format!("{error}")))
}

/// Reads a person from `p.id, p.email, p.name, p.teams`, then the sign-in's own `signed_in_at, mfa`.
fn person(row: &AnyRow) -> Result<VerifiedPerson, sqlx::Error> {
    Ok(VerifiedPerson {
        id: row.try_get::<String, _>(0)?.parse().map_err(|error| corrupt(format!("{error}")))?,
        email: row.try_get(1)?,
        name: row.try_get(2)?,
        teams: serde_json::from_str(&row.try_get::<String, _>(3)?).map_err(corrupt)?,
        signed_in_at: Timestamp(row.try_get(4)?),
        mfa: row.try_get::<i64, _>(5)? != 0,
        family: None,
    })
}

/// A new browser session.
#[derive(Debug)]
pub struct BrowserSession<'a> {
    pub token_hash: &'a str,
    pub csrf_hash: &'a str,
    pub person: &'a PersonId,
    pub signed_in_at: Timestamp,
    pub mfa: bool,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

pub async fn keep_browser_session(tx: &mut Tx, session: &BrowserSession<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO browser_session (token_hash, person, csrf_hash, created_at, signed_in_at, mfa, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(session.token_hash)
    .bind(session.person.as_str())
    .bind(session.csrf_hash)
    .bind(session.created_at.as_millis())
    .bind(session.signed_in_at.as_millis())
    .bind(i64::from(session.mfa))
    .bind(session.expires_at.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The person of a living browser session, and the hash of its CSRF token.
pub async fn browser_session(
    pool: &AnyPool,
    token_hash: &str,
    now: Timestamp,
) -> Result<Option<(VerifiedPerson, String)>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT p.id, p.email, p.name, p.teams, b.signed_in_at, b.mfa, b.csrf_hash
         FROM browser_session b JOIN person p ON p.id = b.person
         WHERE b.token_hash = $1 AND b.expires_at > $2",
    )
    .bind(token_hash)
    .bind(now.as_millis())
    .fetch_optional(pool)
    .await?;
    row.map(|row| Ok((person(&row)?, row.try_get(6)?))).transpose()
}

/// Whether there was one.
pub async fn end_browser_session(tx: &mut Tx, token_hash: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query("DELETE FROM browser_session WHERE token_hash = $1")
        .bind(token_hash)
        .execute(tx.conn())
        .await?;
    Ok(done.rows_affected() > 0)
}

/// A CLI that asked to be signed in.
#[derive(Debug)]
pub struct CliSignIn {
    pub user_code: String,
    pub client: String,
    pub address: String,
    pub state: String,
    pub asked_at: Timestamp,
    pub expires_at: Timestamp,
    pub polled_at: Timestamp,
    pub interval_s: i64,
}

pub async fn keep_cli_sign_in(
    tx: &mut Tx,
    device_code_hash: &str,
    ask: &CliSignIn,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO cli_sign_in (device_code_hash, user_code, client, address, state, asked_at, expires_at,
             polled_at, interval_s)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(device_code_hash)
    .bind(&ask.user_code)
    .bind(&ask.client)
    .bind(&ask.address)
    .bind(&ask.state)
    .bind(ask.asked_at.as_millis())
    .bind(ask.expires_at.as_millis())
    .bind(ask.polled_at.as_millis())
    .bind(ask.interval_s)
    .execute(tx.conn())
    .await?;
    Ok(())
}

fn cli_sign_in(row: &AnyRow) -> Result<CliSignIn, sqlx::Error> {
    Ok(CliSignIn {
        user_code: row.try_get(0)?,
        client: row.try_get(1)?,
        address: row.try_get(2)?,
        state: row.try_get(3)?,
        asked_at: Timestamp(row.try_get(4)?),
        expires_at: Timestamp(row.try_get(5)?),
        polled_at: Timestamp(row.try_get(6)?),
        interval_s: row.try_get(7)?,
    })
}

/// One that waits for a person's answer, by the code that a person types.
pub async fn waiting_cli_sign_in(
    pool: &AnyPool,
    user_code: &str,
    now: Timestamp,
) -> Result<Option<CliSignIn>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT user_code, client, address, state, asked_at, expires_at, polled_at, interval_s
         FROM cli_sign_in WHERE user_code = $1 AND state = 'waiting' AND expires_at > $2",
    )
    .bind(user_code)
    .bind(now.as_millis())
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(cli_sign_in).transpose()
}

pub async fn polled_cli_sign_in(
    tx: &mut Tx,
    device_code_hash: &str,
) -> Result<Option<CliSignIn>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT user_code, client, address, state, asked_at, expires_at, polled_at, interval_s
         FROM cli_sign_in WHERE device_code_hash = $1",
    )
    .bind(device_code_hash)
    .fetch_optional(tx.conn())
    .await?;
    row.as_ref().map(cli_sign_in).transpose()
}

pub async fn note_poll(
    tx: &mut Tx,
    device_code_hash: &str,
    now: Timestamp,
    interval_s: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE cli_sign_in SET polled_at = $1, interval_s = $2 WHERE device_code_hash = $3")
        .bind(now.as_millis())
        .bind(interval_s)
        .bind(device_code_hash)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// waiting → confirmed or refused, once. The client's description and address, when there was one.
pub async fn answer_cli_sign_in(
    tx: &mut Tx,
    user_code: &str,
    by: &VerifiedPerson,
    confirm: bool,
    now: Timestamp,
) -> Result<Option<(String, String)>, sqlx::Error> {
    let row = sqlx::query(
        "UPDATE cli_sign_in SET state = $1, person = $2, signed_in_at = $3, mfa = $4
         WHERE user_code = $5 AND state = 'waiting' AND expires_at > $6 RETURNING client, address",
    )
    .bind(if confirm { "confirmed" } else { "refused" })
    .bind(by.id.as_str())
    .bind(by.signed_in_at.as_millis())
    .bind(i64::from(by.mfa))
    .bind(user_code)
    .bind(now.as_millis())
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// confirmed → spent, once; the person who confirmed it, and the client's description.
pub async fn spend_cli_sign_in(
    tx: &mut Tx,
    device_code_hash: &str,
) -> Result<Option<(VerifiedPerson, String)>, sqlx::Error> {
    let spent = sqlx::query(
        "UPDATE cli_sign_in SET state = 'spent' WHERE device_code_hash = $1 AND state = 'confirmed'",
    )
    .bind(device_code_hash)
    .execute(tx.conn())
    .await?;
    if spent.rows_affected() == 0 {
        return Ok(None);
    }
    let row = sqlx::query(
        "SELECT p.id, p.email, p.name, p.teams, c.signed_in_at, c.mfa, c.client
         FROM cli_sign_in c JOIN person p ON p.id = c.person WHERE c.device_code_hash = $1",
    )
    .bind(device_code_hash)
    .fetch_one(tx.conn())
    .await?;
    Ok(Some((person(&row)?, row.try_get(6)?)))
}

/// How many CLI sign-ins of one address wait.
pub async fn waiting_from(tx: &mut Tx, address: &str, now: Timestamp) -> Result<i64, sqlx::Error> {
    let row = sqlx::query(
        "SELECT COUNT(*) FROM cli_sign_in WHERE address = $1 AND state = 'waiting' AND expires_at > $2",
    )
    .bind(address)
    .bind(now.as_millis())
    .fetch_one(tx.conn())
    .await?;
    row.try_get(0)
}

pub async fn keep_family(
    tx: &mut Tx,
    id: &str,
    of: &VerifiedPerson,
    client: &str,
    expires_at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO token_family (id, person, client, signed_in_at, mfa, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(of.id.as_str())
    .bind(client)
    .bind(of.signed_in_at.as_millis())
    .bind(i64::from(of.mfa))
    .bind(expires_at.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn keep_refresh_token(
    tx: &mut Tx,
    token_hash: &str,
    family: &str,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO refresh_token (token_hash, family, state, created_at) VALUES ($1, $2, 'live', $3)",
    )
    .bind(token_hash)
    .bind(family)
    .bind(now.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// live → spent: of two refreshes with one token, one gets true.
pub async fn spend_refresh_token(tx: &mut Tx, token_hash: &str) -> Result<bool, sqlx::Error> {
    let done =
        sqlx::query("UPDATE refresh_token SET state = 'spent' WHERE token_hash = $1 AND state = 'live'")
            .bind(token_hash)
            .execute(tx.conn())
            .await?;
    Ok(done.rows_affected() == 1)
}

/// A family, and the person it belongs to as the sign-in left them.
#[derive(Debug)]
pub struct Family {
    pub id: String,
    pub person: VerifiedPerson,
    pub client: String,
    pub alive: bool,
}

const FAMILY: &str = "p.id, p.email, p.name, p.teams, f.signed_in_at, f.mfa, f.id, f.client, f.expires_at, \
     f.revoked_at";

fn family(row: &AnyRow, now: Timestamp) -> Result<Family, sqlx::Error> {
    let id: String = row.try_get(6)?;
    let mut person = person(row)?;
    person.family = Some(id.clone());
    let alive = row.try_get::<i64, _>(8)? > now.as_millis() && row.try_get::<Option<i64>, _>(9)?.is_none();
    Ok(Family { id, person, client: row.try_get(7)?, alive })
}

/// The family that a refresh token belongs to, whether it is spent or not.
pub async fn family_of_refresh_token(
    tx: &mut Tx,
    token_hash: &str,
    now: Timestamp,
) -> Result<Option<Family>, sqlx::Error> {
    let sql = format!(
        "SELECT {FAMILY} FROM refresh_token r JOIN token_family f ON f.id = r.family
         JOIN person p ON p.id = f.person WHERE r.token_hash = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(token_hash).fetch_optional(tx.conn()).await?;
    row.map(|row| family(&row, now)).transpose()
}

pub async fn family_by_id(pool: &AnyPool, id: &str, now: Timestamp) -> Result<Option<Family>, sqlx::Error> {
    let sql = format!("SELECT {FAMILY} FROM token_family f JOIN person p ON p.id = f.person WHERE f.id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(pool).await?;
    row.map(|row| family(&row, now)).transpose()
}

/// live → revoked; false when it was revoked before.
pub async fn revoke_family(tx: &mut Tx, id: &str, why: &str, now: Timestamp) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE token_family SET revoked_at = $1, revoked_why = $2 WHERE id = $3 AND revoked_at IS NULL",
    )
    .bind(now.as_millis())
    .bind(why)
    .bind(id)
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The person of an identity certificate that this broker issued and nobody revoked, neither itself nor
/// the sign-in it came from.
pub async fn person_of_certificate(
    pool: &AnyPool,
    id: &PersonId,
    serial: i64,
) -> Result<Option<VerifiedPerson>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT p.id, p.email, p.name, p.teams, p.signed_in_at, p.mfa, c.token_family
         FROM certificate c JOIN person p ON p.id = c.principal
         LEFT JOIN token_family f ON f.id = c.token_family
         WHERE c.serial = $1 AND c.kind = 'identity' AND c.principal = $2
           AND c.revoked_at IS NULL AND f.revoked_at IS NULL",
    )
    .bind(serial)
    .bind(id.as_str())
    .fetch_optional(pool)
    .await?;
    row.map(|row| Ok(VerifiedPerson { family: row.try_get(6)?, ..person(&row)? })).transpose()
}
