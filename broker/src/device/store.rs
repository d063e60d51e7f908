//! SQL of product lines, devices, ledger and join tokens.

use super::state::{self, Step};
use crate::db::Tx;
use daypass_protocol::api::{CraClass, Device, DeviceState, LedgerEntry, ProductLine};
use daypass_protocol::ids::{DeviceId, LineName};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row as _};
use std::collections::BTreeMap;

/// Most devices on one page.
pub const PAGE: usize = 100;

/// A device as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    pub id: DeviceId,
    pub serial_number: String,
    pub product_line: LineName,
    pub state: DeviceState,
    /// One-line OpenSSH public key.
    pub public_key: Option<String>,
    pub key_fingerprint: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub shim_version: Option<String>,
    pub bundle_version: i64,
    pub enrolled_at: Option<Timestamp>,
    pub last_seen_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl DeviceRow {
    pub fn into_api(self, online: bool) -> Device {
        Device {
            id: self.id,
            serial_number: self.serial_number,
            product_line: self.product_line,
            state: self.state,
            labels: self.labels,
            online,
            last_seen_at: self.last_seen_at,
            key_fingerprint: self.key_fingerprint,
            shim_version: self.shim_version,
            enrolled_at: self.enrolled_at,
        }
    }
}

/// A join token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub product_line: LineName,
    pub labels: BTreeMap<String, String>,
    pub uses_allowed: i64,
    pub uses_made: i64,
    pub created_by: String,
    pub expires_at: Timestamp,
}

/// Which devices to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub line: Option<LineName>,
    /// Every one of these must be on the device.
    pub labels: Vec<(String, String)>,
    /// Part of the id, the serial number or a label's value, in any case.
    pub text: Option<String>,
    /// Those after this id.
    pub after: Option<DeviceId>,
}

const COLUMNS: &str = "id, serial_number, product_line, state, public_key, key_fingerprint, labels, \
     shim_version, bundle_version, enrolled_at, last_seen_at, created_at";

fn unread(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
    move |source| sqlx::Error::ColumnDecode { index: what.to_owned(), source }
}

fn read_state(text: &str) -> Result<DeviceState, sqlx::Error> {
    state::parse(text).ok_or_else(|| unread("state")(format!("{text:?} is no device state").into()))
}

fn read_labels(text: &str) -> Result<BTreeMap<String, String>, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| unread("labels")(error.into()))
}

fn write_labels(labels: &BTreeMap<String, String>) -> String {
    serde_json::Value::from_iter(labels.clone()).to_string()
}

fn read_device(row: &AnyRow) -> Result<DeviceRow, sqlx::Error> {
    Ok(DeviceRow {
        id: row.try_get::<String, _>("id")?.parse().map_err(|e| unread("id")(Box::new(e)))?,
        serial_number: row.try_get("serial_number")?,
        product_line: row
            .try_get::<String, _>("product_line")?
            .parse()
            .map_err(|e| unread("product_line")(Box::new(e)))?,
        state: read_state(&row.try_get::<String, _>("state")?)?,
        public_key: row.try_get("public_key")?,
        key_fingerprint: row.try_get("key_fingerprint")?,
        labels: read_labels(&row.try_get::<String, _>("labels")?)?,
        shim_version: row.try_get("shim_version")?,
        bundle_version: row.try_get("bundle_version")?,
        enrolled_at: row.try_get::<Option<i64>, _>("enrolled_at")?.map(Timestamp),
        last_seen_at: row.try_get::<Option<i64>, _>("last_seen_at")?.map(Timestamp),
        created_at: Timestamp(row.try_get("created_at")?),
    })
}

fn class_as_str(class: CraClass) -> &'static str {
    match class {
        CraClass::Default => "default",
        CraClass::Important1 => "important-1",
        CraClass::Important2 => "important-2",
        CraClass::Critical => "critical",
    }
}

fn read_line(row: &AnyRow) -> Result<ProductLine, sqlx::Error> {
    let class: String = row.try_get("cra_class")?;
    Ok(ProductLine {
        name: row.try_get::<String, _>("name")?.parse().map_err(|e| unread("name")(Box::new(e)))?,
        title: row.try_get("title")?,
        cra_class: [CraClass::Default, CraClass::Important1, CraClass::Important2, CraClass::Critical]
            .into_iter()
            .find(|known| class_as_str(*known) == class)
            .ok_or_else(|| unread("cra_class")(format!("{class:?} is no class").into()))?,
        support_end: row.try_get("support_end")?,
        forward_targets: match row.try_get::<String, _>("forward_targets")?.as_str() {
            "" => Vec::new(),
            list => ForwardTarget::list(list).map_err(|e| unread("forward_targets")(Box::new(e)))?,
        },
    })
}

/// Adds a product line; a constraint refuses a name that is taken.
pub async fn add_line(tx: &mut Tx, line: &ProductLine, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO product_line (name, title, cra_class, support_end, forward_targets, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(line.name.as_str())
    .bind(line.title.as_str())
    .bind(class_as_str(line.cra_class))
    .bind(line.support_end.as_str())
    .bind(ForwardTarget::listed(&line.forward_targets))
    .bind(now.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn lines(pool: &AnyPool) -> Result<Vec<ProductLine>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT name, title, cra_class, support_end, forward_targets FROM product_line ORDER BY name",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(read_line).collect()
}

pub async fn line(pool: &AnyPool, name: &LineName) -> Result<Option<ProductLine>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT name, title, cra_class, support_end, forward_targets FROM product_line WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(read_line).transpose()
}

pub async fn find(pool: &AnyPool, id: &DeviceId) -> Result<Option<DeviceRow>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM device WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(pool).await?;
    row.as_ref().map(read_device).transpose()
}

/// As [`find`], in a transaction that will change the device. The update takes the row's lock, so that
/// two decisions about one device follow each other.
pub async fn find_for_update(tx: &mut Tx, id: &DeviceId) -> Result<Option<DeviceRow>, sqlx::Error> {
    let sql = format!("UPDATE device SET id = id WHERE id = $1 RETURNING {COLUMNS}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(tx.conn()).await?;
    row.as_ref().map(read_device).transpose()
}

/// One page of devices by id, and the id to go on after.
pub async fn list(
    pool: &AnyPool,
    filter: &Filter,
) -> Result<(Vec<DeviceRow>, Option<DeviceId>), sqlx::Error> {
    let text = filter.text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_lowercase);
    let mut after = filter.after.as_ref().map_or_else(String::new, ToString::to_string);
    let mut found = Vec::new();
    // Labels and text are matched here: SQLite and PostgreSQL have no JSON in common. Each query reads
    // a bounded number of rows.
    let sql = format!(
        "SELECT {COLUMNS} FROM device WHERE id > $1 AND ($2 = '' OR product_line = $3) ORDER BY id LIMIT 500"
    );
    let line = filter.line.as_ref().map_or("", LineName::as_str);
    loop {
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql.as_str()))
            .bind(after.clone())
            .bind(line)
            .bind(line)
            .fetch_all(pool)
            .await?;
        let last_page = rows.len() < 500;
        for row in &rows {
            let device = read_device(row)?;
            device.id.as_str().clone_into(&mut after);
            let labelled = filter.labels.iter().all(|(name, value)| device.labels.get(name) == Some(value));
            let named = text.as_ref().is_none_or(|text| {
                device.id.as_str().contains(text)
                    || device.serial_number.to_lowercase().contains(text)
                    || device.labels.values().any(|value| value.to_lowercase().contains(text))
            });
            if labelled && named {
                if found.len() == PAGE {
                    let next = found.last().map(|last: &DeviceRow| last.id.clone());
                    return Ok((found, next));
                }
                found.push(device);
            }
        }
        if last_page {
            return Ok((found, None));
        }
    }
}

/// What a device is entered with.
#[derive(Clone, Debug)]
pub struct NewDevice<'a> {
    pub id: &'a DeviceId,
    pub serial_number: &'a str,
    pub product_line: &'a LineName,
    pub public_key: &'a str,
    pub key_fingerprint: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub shim_version: &'a str,
}

/// Enters an enrolled device; constraints refuse an id, a serial number or a key that is taken.
pub async fn add_enrolled(
    tx: &mut Tx,
    device: &NewDevice<'_>,
    step: Step,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO device (id, serial_number, product_line, state, prior_state, public_key,
                             key_fingerprint, labels, shim_version, bundle_version, enrolled_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, $11)",
    )
    .bind(device.id.as_str())
    .bind(device.serial_number)
    .bind(device.product_line.as_str())
    .bind(state::as_str(step.to()))
    .bind(state::origin(step.from()))
    .bind(device.public_key)
    .bind(device.key_fingerprint)
    .bind(write_labels(device.labels))
    .bind(device.shim_version)
    .bind(now.as_millis())
    .bind(now.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Moves a device by one step; the schema refuses a step that is not legal.
pub async fn take_step(tx: &mut Tx, id: &DeviceId, step: Step) -> Result<(), sqlx::Error> {
    let done = sqlx::query("UPDATE device SET prior_state = $2, state = $3 WHERE id = $1 AND state = $4")
        .bind(id.as_str())
        .bind(state::origin(step.from()))
        .bind(state::as_str(step.to()))
        .bind(state::origin(step.from()))
        .execute(tx.conn())
        .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

pub async fn add_ledger_entry(
    tx: &mut Tx,
    device: &DeviceId,
    step: Step,
    by_whom: &str,
    reason: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ledger_entry (device, number, at, from_state, to_state, by_whom, reason)
         VALUES ($1, (SELECT COALESCE(MAX(number), 0) + 1 FROM ledger_entry WHERE device = $2),
                 $3, $4, $5, $6, $7)",
    )
    .bind(device.as_str())
    .bind(device.as_str())
    .bind(at.as_millis())
    .bind(state::origin(step.from()))
    .bind(state::as_str(step.to()))
    .bind(by_whom)
    .bind(reason)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A device's life, oldest step first.
pub async fn ledger(pool: &AnyPool, device: &DeviceId) -> Result<Vec<LedgerEntry>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT at, from_state, to_state, by_whom, reason FROM ledger_entry WHERE device = $1 ORDER BY number",
    )
    .bind(device.as_str())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let from: String = row.try_get("from_state")?;
            Ok(LedgerEntry {
                at: Timestamp(row.try_get("at")?),
                from: if from == "none" { None } else { Some(read_state(&from)?) },
                to: read_state(&row.try_get::<String, _>("to_state")?)?,
                by: row.try_get("by_whom")?,
                reason: row.try_get("reason")?,
            })
        })
        .collect()
}

/// That a tunnel of this device was alive at `at`, and which shim it runs.
pub async fn seen(
    tx: &mut Tx,
    device: &DeviceId,
    shim_version: Option<&str>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE device SET last_seen_at = $2, shim_version = COALESCE($3, shim_version) WHERE id = $1",
    )
    .bind(device.as_str())
    .bind(at.as_millis())
    .bind(shim_version)
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn add_token(
    tx: &mut Tx,
    secret_hash: &str,
    token: &TokenRow,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO join_token (secret_hash, product_line, labels, uses_allowed, uses_made, created_by,
                                 created_at, expires_at)
         VALUES ($1, $2, $3, $4, 0, $5, $6, $7)",
    )
    .bind(secret_hash)
    .bind(token.product_line.as_str())
    .bind(write_labels(&token.labels))
    .bind(token.uses_allowed)
    .bind(token.created_by.as_str())
    .bind(now.as_millis())
    .bind(token.expires_at.as_millis())
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub async fn find_token(tx: &mut Tx, secret_hash: &str) -> Result<Option<TokenRow>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT product_line, labels, uses_allowed, uses_made, created_by, expires_at
         FROM join_token WHERE secret_hash = $1",
    )
    .bind(secret_hash)
    .fetch_optional(tx.conn())
    .await?;
    row.map(|row| {
        Ok(TokenRow {
            product_line: row
                .try_get::<String, _>("product_line")?
                .parse()
                .map_err(|e| unread("product_line")(Box::new(e)))?,
            labels: read_labels(&row.try_get::<String, _>("labels")?)?,
            uses_allowed: row.try_get("uses_allowed")?,
            uses_made: row.try_get("uses_made")?,
            created_by: row.try_get("created_by")?,
            expires_at: Timestamp(row.try_get("expires_at")?),
        })
    })
    .transpose()
}

/// Counts one use. Of two devices that race for the last one, one violates
/// `join_token_is_not_overused`, whatever both have read before.
pub async fn use_token(tx: &mut Tx, secret_hash: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE join_token SET uses_made = uses_made + 1 WHERE secret_hash = $1")
        .bind(secret_hash)
        .execute(tx.conn())
        .await?;
    Ok(())
}
