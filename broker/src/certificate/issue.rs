//! Minting. Each kind of certificate has one function, and each writes its serial to the register in the
//! caller's transaction.

use super::keys::Keys;
use crate::audit::{self, Actor, Event, Kind, Recorded};
use crate::db::Tx;
use crate::login::VerifiedPerson;
use crate::session::Permit;
use daypass_protocol::certificate::{
    FORCE_COMMAND, FORWARD_TARGETS, KeyId, PERMIT_PORT_FORWARDING, PERMIT_PTY, PERMIT_SFTP, Principal,
};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::ids::{DeviceId, SessionId};
use daypass_protocol::signed::{fingerprint, is_acceptable_key};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::{Certificate, PublicKey};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("keys of type {0} are not certified here; use Ed25519 or ECDSA P-256")]
    KeyType(String),
    #[error("the certificate could not be made: {0}")]
    Certificate(#[from] ssh_key::Error),
    #[error(transparent)]
    Randomness(#[from] crate::random::NoRandomness),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// How far back a certificate's start is dated, for verifiers whose clock is behind.
pub const SKEW: Duration = Duration::from_mins(5);

struct Terms<'a> {
    kind: &'static str,
    cert_type: CertType,
    principals: Vec<String>,
    key_id: String,
    valid_before: Timestamp,
    /// What narrows it: a verifier that does not know one of them refuses the certificate.
    critical: Vec<(&'static str, String)>,
    extensions: Vec<&'static str>,
    session: Option<&'a SessionId>,
    /// The CLI sign-in that asked; signing out ends the certificate too.
    token_family: Option<&'a str>,
}

/// The certificate of one session: one login on one device until the grant ends. Consumes the permit.
pub async fn session(
    tx: &mut Tx,
    keys: &Keys,
    permit: Permit,
    key: &PublicKey,
    now: Timestamp,
) -> Result<(Certificate, Recorded), IssueError> {
    let key_id = KeyId {
        person: permit.person_label().to_owned(),
        grant: Some(permit.grant().clone()),
        session: Some(permit.session().clone()),
    };
    let mut extensions = Vec::new();
    // OpenSSH's option map is sorted by name; PTYs are for shells and for commands that ask for one.
    let channels = &permit.scope().channels;
    let mut critical: Vec<_> =
        permit.scope().command.iter().map(|only| (FORCE_COMMAND, only.clone())).collect();
    // Never the permission without its bound.
    if channels.contains(ChannelKind::Forward) && !permit.scope().targets.is_empty() {
        critical.push((FORWARD_TARGETS, ForwardTarget::listed(&permit.scope().targets)));
        extensions.push(PERMIT_PORT_FORWARDING);
    }
    if channels.contains(ChannelKind::Shell) || channels.contains(ChannelKind::Exec) {
        extensions.push(PERMIT_PTY);
    }
    if channels.contains(ChannelKind::Sftp) {
        extensions.push(PERMIT_SFTP);
    }
    let terms = Terms {
        kind: "session",
        cert_type: CertType::User,
        principals: vec![permit.principal().to_string()],
        key_id: key_id.to_string(),
        valid_before: permit.ends_at(),
        critical,
        extensions,
        session: Some(permit.session()),
        token_family: None,
    };
    let certificate = mint(tx, &keys.user, key, &terms, now).await?;
    let event = Event::new(Kind::CertificateIssued, Actor::Broker)
        .request(permit.grant())
        .session(permit.session())
        .detail(describe(&terms, &certificate));
    let recorded = audit::append(tx, now, event).await?;
    Ok((certificate, recorded))
}

/// The certificate that proves a person to the gateway until `until`; it opens nothing on any device.
pub async fn identity(
    tx: &mut Tx,
    keys: &Keys,
    person: &VerifiedPerson,
    key: &PublicKey,
    now: Timestamp,
    until: Timestamp,
) -> Result<(Certificate, Recorded), IssueError> {
    let label = if person.email().is_empty() { person.id().as_str() } else { person.email() };
    let terms = Terms {
        kind: "identity",
        cert_type: CertType::User,
        principals: vec![Principal::Person(person.id().clone()).to_string()],
        key_id: KeyId { person: label.to_owned(), grant: None, session: None }.to_string(),
        valid_before: until,
        // OpenSSH clients do not look at these; sshd would. The gateway reads neither.
        critical: vec![],
        extensions: vec![],
        session: None,
        token_family: person.family(),
    };
    let certificate = mint(tx, &keys.identity, key, &terms, now).await?;
    let event = Event::new(Kind::CertificateIssued, person.actor()).detail(describe(&terms, &certificate));
    let recorded = audit::append(tx, now, event).await?;
    Ok((certificate, recorded))
}

/// The certificate that proves a device, or the gateway in a device's name, to SSH clients.
pub async fn host(
    tx: &mut Tx,
    keys: &Keys,
    names: Vec<String>,
    device: Option<&DeviceId>,
    key: &PublicKey,
    now: Timestamp,
    until: Timestamp,
) -> Result<(Certificate, Recorded), IssueError> {
    let terms = Terms {
        kind: "host",
        cert_type: CertType::Host,
        key_id: format!("host={}", names.first().map_or("", String::as_str)),
        principals: names,
        valid_before: until,
        critical: vec![],
        extensions: vec![],
        session: None,
        token_family: None,
    };
    let certificate = mint(tx, &keys.host, key, &terms, now).await?;
    let mut event = Event::new(Kind::CertificateIssued, Actor::Broker).detail(describe(&terms, &certificate));
    event.device = device.cloned();
    let recorded = audit::append(tx, now, event).await?;
    Ok((certificate, recorded))
}

async fn mint(
    tx: &mut Tx,
    ca: &super::Signer,
    key: &PublicKey,
    terms: &Terms<'_>,
    now: Timestamp,
) -> Result<Certificate, IssueError> {
    if !is_acceptable_key(key) {
        return Err(IssueError::KeyType(key.algorithm().to_string()));
    }
    let (after, before) = ((now - SKEW).as_secs(), terms.valid_before.as_secs());
    // 63 bits, so that the database's BIGINT holds it; the register's primary key refuses a second use.
    let serial = (u64::from_be_bytes(crate::random::bytes()?) >> 1).max(1);
    let mut builder = Builder::new(crate::random::bytes::<16>()?, key, after, before)?;
    builder.serial(serial)?.cert_type(terms.cert_type)?.key_id(&terms.key_id)?;
    for principal in &terms.principals {
        builder.valid_principal(principal)?;
    }
    for (name, value) in &terms.critical {
        builder.critical_option(*name, value)?;
    }
    for extension in &terms.extensions {
        builder.extension(*extension, "")?;
    }
    let certificate = ca.certify(builder)?;
    sqlx::query(
        "INSERT INTO certificate (serial, kind, ca, principal, key_id, key_fingerprint, valid_after,
                                  valid_before, issued_at, session, token_family)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(i64::try_from(serial).unwrap_or(i64::MAX))
    .bind(terms.kind)
    .bind(fingerprint(ca.public_key()))
    .bind(terms.principals.join(" "))
    .bind(terms.key_id.clone())
    .bind(fingerprint(key))
    .bind(Timestamp::from_secs(after).as_millis())
    .bind(Timestamp::from_secs(before).as_millis())
    .bind(now.as_millis())
    .bind(terms.session.map(|id| id.as_str().to_owned()))
    .bind(terms.token_family.map(str::to_owned))
    .execute(tx.conn())
    .await?;
    Ok(certificate)
}

fn describe(terms: &Terms<'_>, certificate: &Certificate) -> serde_json::Value {
    serde_json::json!({
        "kind": terms.kind,
        "serial": certificate.serial(),
        "principals": terms.principals,
        "key_id": terms.key_id,
        "critical_options": terms.critical.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "valid_after_s": certificate.valid_after(),
        "valid_before_s": certificate.valid_before(),
    })
}
