//! The profile's SSH key, born here, and the identity certificate over it.

use crate::client::Client;
use crate::failure::Failure;
use crate::profile::{Profile, file};
use crate::ui::words;
use daypass_protocol::api::{IdentityCertificate, IdentityCertificateAsk};
use daypass_protocol::ssh_key::certificate::CertType;
use daypass_protocol::ssh_key::private::{Ed25519Keypair, KeypairData};
use daypass_protocol::ssh_key::{Certificate, LineEnding, PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;
use std::time::Duration;

pub const KEY: &str = "id_ed25519";
const PUBLIC_KEY: &str = "id_ed25519.pub";
pub const CERTIFICATE: &str = "id_ed25519-cert.pub";

/// A certificate is renewed when it has less than this to live.
const MARGIN: Duration = Duration::from_mins(5);

fn key_failure(error: impl std::fmt::Display) -> Failure {
    Failure::Key(error.to_string())
}

/// The profile's key, made now if there is none. A key that cannot be read is an error, never a reason
/// to make another in its place.
fn key(profile: &Profile) -> Result<PrivateKey, Failure> {
    let path = profile.path(KEY);
    if let Some(pem) = file::read(&path)? {
        return PrivateKey::from_openssh(&pem)
            .map_err(|error| Failure::Corrupt { path, why: error.to_string() });
    }
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|_| Failure::Random)?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, format!("daypass {}", profile.name)).map_err(key_failure)?;
    profile.write(KEY, key.to_openssh(LineEnding::LF).map_err(key_failure)?.as_bytes())?;
    let public = key.public_key().to_openssh().map_err(key_failure)?;
    profile.write(PUBLIC_KEY, format!("{public}\n").as_bytes())?;
    Ok(key)
}

/// The stored certificate, if it is over `key`.
fn certificate(profile: &Profile, key: &PrivateKey) -> Result<Option<Certificate>, Failure> {
    let Some(line) = file::read(&profile.path(CERTIFICATE))? else { return Ok(None) };
    Ok(Certificate::from_openssh(&line)
        .ok()
        .filter(|certificate| certificate.public_key() == key.public_key().key_data()))
}

fn lives_on(certificate: &Certificate, now: Timestamp) -> bool {
    certificate.valid_before() > (now + MARGIN).as_secs()
}

/// Whether plain ssh can go on with what is there, without asking the broker.
pub fn is_ready(profile: &Profile, now: Timestamp) -> Result<bool, Failure> {
    if file::read(&profile.path(KEY))?.is_none() {
        return Ok(false);
    }
    Ok(certificate(profile, &key(profile)?)?.is_some_and(|certificate| lives_on(&certificate, now)))
}

/// Gets a certificate unless there is one that lives on and was signed by one of `identity_cas`
/// (none given: by anybody).
pub async fn ensure(
    client: &Client,
    profile: &Profile,
    identity_cas: &[String],
    now: Timestamp,
) -> Result<(), Failure> {
    let good = |certificate: &Certificate| {
        lives_on(certificate, now)
            && (identity_cas.is_empty()
                || identity_cas.iter().any(|ca| {
                    PublicKey::from_openssh(ca).is_ok_and(|ca| ca.key_data() == certificate.signature_key())
                }))
    };
    let key = {
        let _lock = profile.lock().await?;
        key(profile)?
    };
    if certificate(profile, &key)?.is_some_and(|certificate| good(&certificate)) {
        return Ok(());
    }
    renew(client, profile, &key).await
}

/// Asks for a new certificate over the profile's key, whatever there is.
pub async fn renew_now(client: &Client, profile: &Profile) -> Result<(), Failure> {
    let key = {
        let _lock = profile.lock().await?;
        key(profile)?
    };
    renew(client, profile, &key).await
}

async fn renew(client: &Client, profile: &Profile, key: &PrivateKey) -> Result<(), Failure> {
    let public_key = key.public_key().to_openssh().map_err(key_failure)?;
    let answer: IdentityCertificate =
        client.post("/v1/me/certificate", &IdentityCertificateAsk { public_key }).await?;
    let bad = |why: String| Failure::BadAnswer { what: words::CERTIFICATE, why };
    let certificate = Certificate::from_openssh(answer.certificate.trim()).map_err(|e| bad(e.to_string()))?;
    if certificate.public_key() != key.public_key().key_data() {
        return Err(bad(words::OTHER_KEY.to_owned()));
    }
    if certificate.cert_type() != CertType::User {
        return Err(bad(words::NOT_A_USER_CERTIFICATE.to_owned()));
    }
    // Written as this program spells it: what the broker sent may have more than one line.
    let line = certificate.to_openssh().map_err(key_failure)?;
    profile.write(CERTIFICATE, format!("{line}\n").as_bytes())
}

/// Removes key and certificate: at sign-out.
pub fn forget(profile: &Profile) -> Result<(), Failure> {
    [CERTIFICATE, PUBLIC_KEY, KEY].into_iter().try_for_each(|name| profile.remove(name))
}
