//! Enrolment: a join token in, a device in the inventory out. `protocol/TUNNEL.md` section 5.
//!
//! Nothing is believed before the device's signature has been verified over the binding of this very TLS
//! connection; nothing is counted before everything else has been checked; and then all of it commits at
//! once or not at all.

use super::bundle::{self, BundleMakeError};
use super::changes::enter;
use super::state::{IllegalStep, Step};
use super::store::{self, NewDevice, TokenRow};
use super::trust::{Trust, TrustError, lines};
use crate::audit::{self, Actor, Event, Kind, Recorded};
use crate::db::{Db, Tx, violates};
use daypass_protocol::api::{DeviceState, EnrolToken, EnrolTokenAsk};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::join::JoinToken;
use daypass_protocol::signed::{Purpose, SignatureError, fingerprint, is_acceptable_key};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::text::{MAX_NAME, UnfitText, made_visible, visible_line};
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::hello::{Binding, Enrol, EnrolAsk, Enrolled, RefusalCode};
use std::time::Duration;

/// Most devices that one join token lets in, the longest it lives, and the most labels it carries.
pub const MAX_USES: u32 = 10_000;
pub const MAX_LIFETIME: Duration = Duration::from_hours(90 * 24);
pub const MAX_LABELS: usize = 32;
/// Longest serial number, in bytes.
pub const MAX_SERIAL: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum MakeTokenError {
    #[error("a join token lets in 1 to {MAX_USES} devices, and not {0}")]
    Uses(u32),
    #[error("a join token lives 1 second to 90 days, and not {0} seconds")]
    Lifetime(u64),
    #[error("at most {MAX_LABELS} labels are allowed")]
    Labels,
    #[error("a label has a name, and there is no = in it")]
    LabelName,
    #[error(transparent)]
    Text(#[from] UnfitText),
    #[error("there is no product line {0}")]
    UnknownLine(String),
    #[error(transparent)]
    Randomness(#[from] crate::random::NoRandomness),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Makes a join token. The token itself is returned once and never stored.
pub async fn make_token(
    tx: &mut Tx,
    trust: &Trust,
    broker_url: &str,
    ask: &EnrolTokenAsk,
    actor: Actor,
    now: Timestamp,
) -> Result<(EnrolToken, Recorded), MakeTokenError> {
    if !(1..=MAX_USES).contains(&ask.uses) {
        return Err(MakeTokenError::Uses(ask.uses));
    }
    if ask.lifetime_s == 0 || ask.lifetime_s > MAX_LIFETIME.as_secs() {
        return Err(MakeTokenError::Lifetime(ask.lifetime_s));
    }
    if ask.labels.len() > MAX_LABELS {
        return Err(MakeTokenError::Labels);
    }
    let mut labels = std::collections::BTreeMap::new();
    for (name, value) in &ask.labels {
        let name = visible_line("a label's name", name, MAX_NAME)?;
        if name.is_empty() || name.contains('=') {
            return Err(MakeTokenError::LabelName);
        }
        labels.insert(name, visible_line("a label", value, MAX_NAME)?);
    }
    let token = JoinToken::new(broker_url.to_owned(), &trust.pin()?, crate::random::bytes()?);
    let row = TokenRow {
        product_line: ask.product_line.clone(),
        labels,
        uses_allowed: i64::from(ask.uses),
        uses_made: 0,
        created_by: actor.to_string(),
        expires_at: now + Duration::from_secs(ask.lifetime_s),
    };
    let hash = JoinToken::secret_hash(&token.secret);
    store::add_token(tx, &hash, &row, now).await.map_err(|error| {
        if violates(&error, &["join_token_product_line_fkey", "FOREIGN KEY"]) {
            MakeTokenError::UnknownLine(ask.product_line.to_string())
        } else {
            error.into()
        }
    })?;
    let event = Event::new(Kind::JoinTokenMade, actor).detail(serde_json::json!({
        "token": short(&hash),
        "product_line": ask.product_line,
        "uses": ask.uses,
        "expires_at": row.expires_at,
        "labels": row.labels,
    }));
    let recorded = audit::append(tx, now, event).await?;
    let made = EnrolToken {
        token: token.to_string(),
        product_line: ask.product_line.clone(),
        uses: ask.uses,
        expires_at: row.expires_at,
    };
    Ok((made, recorded))
}

/// Enough of a token's hash to tell tokens apart in the audit log.
fn short(hash: &str) -> &str {
    &hash[..12.min(hash.len())]
}

/// Why a device was not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("the enrolment has version {0}; this broker speaks 1")]
    Version(u32),
    #[error("the enrolment is not signed as it should be: {0}")]
    Signature(#[from] SignatureError),
    #[error("the enrolment is signed by another key than the one it brings")]
    OtherKey,
    #[error("the enrolment brings a key of type {0}; Ed25519 and ECDSA P-256 are accepted")]
    KeyType(String),
    #[error("the device key does not read: {0}")]
    Key(String),
    #[error("the enrolment was signed for another connection")]
    OtherConnection,
    #[error("the join token is not known")]
    UnknownToken,
    #[error("the join token expired at {0}")]
    TokenExpired(Timestamp),
    #[error("the join token is used up")]
    TokenUsedUp,
    #[error("the join token is for product line {token}, and the device is of {device}")]
    OtherLine { token: String, device: String },
    #[error("{0}")]
    Serial(String),
    #[error("the device id {0} is taken")]
    IdTaken(DeviceId),
    #[error("a device with serial number {0} is already enrolled")]
    SerialTaken(String),
    #[error("the device key is already enrolled as another device")]
    KeyTaken,
    #[error("this device is already enrolled, and it is not active")]
    NotActive,
    #[error(transparent)]
    Step(#[from] IllegalStep),
    #[error(transparent)]
    Bundle(#[from] BundleMakeError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
}

impl EnrolError {
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::Version(_) | Self::KeyType(_) | Self::Key(_) | Self::Serial(_) => RefusalCode::Malformed,
            Self::Signature(_) | Self::OtherKey | Self::OtherConnection | Self::UnknownToken => {
                RefusalCode::NotAuthentic
            }
            Self::TokenExpired(_) | Self::TokenUsedUp | Self::OtherLine { .. } => RefusalCode::TokenUnusable,
            Self::IdTaken(_) | Self::SerialTaken(_) | Self::KeyTaken => RefusalCode::Taken,
            Self::NotActive => RefusalCode::StateForbids,
            Self::Step(_) | Self::Bundle(_) | Self::Trust(_) | Self::Database(_) => RefusalCode::Busy,
        }
    }

    /// What the far side is told. Our own troubles stay in our log.
    pub fn message(&self) -> String {
        match self.code() {
            RefusalCode::Busy => "the broker is in trouble; try again later".to_owned(),
            _ => self.to_string(),
        }
    }
}

/// Takes a device into the fleet. `from` is the address it came from. A refusal is in the audit log when
/// this returns.
pub async fn enrol(
    db: &Db,
    trust: &Trust,
    binding: &Binding,
    from: &str,
    ask: &EnrolAsk,
    now: Timestamp,
) -> Result<Enrolled, EnrolError> {
    let refused = match admit(db, trust, binding, from, ask, now).await {
        Ok(enrolled) => return Ok(enrolled),
        Err(refused) => refused,
    };
    tracing::warn!(from, cause = %refused, "an enrolment was refused");
    let event =
        Event::new(Kind::EnrolmentRefused, Actor::Stranger(from.to_owned())).detail(serde_json::json!({
            "token": short(&JoinToken::secret_hash(&ask.secret)),
            "cause": made_visible(&refused.to_string(), 500),
        }));
    let mut tx = db.begin().await?;
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await?;
    Err(refused)
}

struct Proven {
    key: PublicKey,
    /// One line, without a comment.
    line: String,
    serial_number: String,
    enrol: Enrol,
}

/// Possession of the device key, on this connection.
fn prove(binding: &Binding, ask: &EnrolAsk) -> Result<Proven, EnrolError> {
    if ask.v != 1 {
        return Err(EnrolError::Version(ask.v));
    }
    let signer = ask.enrol.unverified_signer()?;
    if !is_acceptable_key(&signer) {
        return Err(EnrolError::KeyType(signer.algorithm().to_string()));
    }
    let enrol: Enrol = ask.enrol.open(std::slice::from_ref(&signer), Purpose::Enrol, "an enrolment")?;
    if enrol.v != 1 {
        return Err(EnrolError::Version(enrol.v));
    }
    if enrol.binding != *binding {
        return Err(EnrolError::OtherConnection);
    }
    let mut key =
        PublicKey::from_openssh(&enrol.public_key).map_err(|error| EnrolError::Key(error.to_string()))?;
    if key.key_data() != signer.key_data() {
        return Err(EnrolError::OtherKey);
    }
    key.set_comment("");
    let line = key.to_openssh().map_err(|error| EnrolError::Key(error.to_string()))?;
    let serial_number = visible_line("the serial number", &enrol.serial_number, MAX_SERIAL)
        .map_err(|error| EnrolError::Serial(error.to_string()))?;
    if serial_number.is_empty() {
        return Err(EnrolError::Serial("the device gives no serial number".to_owned()));
    }
    Ok(Proven { key, line, serial_number, enrol })
}

async fn admit(
    db: &Db,
    trust: &Trust,
    binding: &Binding,
    from: &str,
    ask: &EnrolAsk,
    now: Timestamp,
) -> Result<Enrolled, EnrolError> {
    let proven = prove(binding, ask)?;
    let id = match &proven.enrol.device {
        Some(wanted) => wanted.clone(),
        None => slug(&proven.serial_number)?,
    };
    let hash = JoinToken::secret_hash(&ask.secret);
    let mut tx = db.begin().await?;
    let token = store::find_token(&mut tx, &hash).await?.ok_or(EnrolError::UnknownToken)?;
    if now >= token.expires_at {
        return Err(EnrolError::TokenExpired(token.expires_at));
    }
    if let Some(line) = &proven.enrol.product_line
        && line != token.product_line.as_str()
    {
        let device = made_visible(line, MAX_NAME);
        return Err(EnrolError::OtherLine { token: token.product_line.to_string(), device });
    }
    store::use_token(&mut tx, &hash).await.map_err(|error| {
        if violates(&error, &["join_token_is_not_overused"]) { EnrolError::TokenUsedUp } else { error.into() }
    })?;
    let key_fingerprint = fingerprint(&proven.key);
    let shim_version = made_visible(&proven.enrol.shim_version, MAX_NAME);
    let again = store::find_for_update(&mut tx, &id).await?.filter(|held| {
        held.key_fingerprint.as_ref() == Some(&key_fingerprint)
            && held.serial_number == proven.serial_number
            && held.product_line == token.product_line
    });
    match &again {
        // The answer to its first enrolment was lost on the way.
        Some(held) if held.state == DeviceState::Active => {}
        Some(_) => return Err(EnrolError::NotActive),
        None => {
            let step = Step::new(None, DeviceState::Active)?;
            let device = NewDevice {
                id: &id,
                serial_number: &proven.serial_number,
                product_line: &token.product_line,
                public_key: &proven.line,
                key_fingerprint: &key_fingerprint,
                labels: &token.labels,
                shim_version: &shim_version,
            };
            store::add_enrolled(&mut tx, &device, step, now).await.map_err(|error| {
                if violates(&error, &["device_pkey", "device.id"]) {
                    EnrolError::IdTaken(id.clone())
                } else if violates(&error, &["device_serial_number_is_unique", "device.serial_number"]) {
                    EnrolError::SerialTaken(proven.serial_number.clone())
                } else if violates(&error, &["device_key_is_unique", "device.key_fingerprint"]) {
                    EnrolError::KeyTaken
                } else {
                    error.into()
                }
            })?;
            let _in_ledger =
                enter(&mut tx, &id, step, Actor::Device(id.clone()), "enrolled by join token", now).await?;
        }
    }
    let host_certificate = trust.cas.host_certificate(&mut tx, &id, &proven.key, now).await?;
    let bundle = bundle::current(&mut tx, trust, &id, 0, now).await?;
    let event =
        Event::new(Kind::DeviceEnrolled, Actor::Device(id.clone())).device(&id).detail(serde_json::json!({
            "token": short(&hash),
            "token_by": token.created_by,
            "product_line": token.product_line,
            "serial_number": proven.serial_number,
            "key": key_fingerprint,
            "from": from,
            "again": again.is_some(),
        }));
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await?;
    tracing::info!(device = %id, from, "a device was enrolled");
    Ok(Enrolled {
        v: 1,
        device: id,
        host_certificate,
        bundle: bundle.signed,
        broker_keys: lines(trust.evidence.public_keys())?,
    })
}

/// A device id made of a serial number: `SN 00/42-A` becomes `sn-00-42-a`.
fn slug(serial: &str) -> Result<DeviceId, EnrolError> {
    let mut id = String::new();
    for c in serial.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_alphanumeric() {
            id.push(c);
        } else if !id.is_empty() && !id.ends_with('-') {
            id.push('-');
        }
    }
    id.truncate(63);
    id.trim_end_matches('-').parse().map_err(|_| {
        EnrolError::Serial("no device id can be made of this serial number; ask for one".to_owned())
    })
}

#[cfg(test)]
mod tests;
