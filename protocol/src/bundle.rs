//! The trust bundle: what a device believes, signed by the broker's evidence key.

use crate::ids::DeviceId;
use crate::signed::{Purpose, SignatureError, SignedText, is_acceptable_key};
use crate::ssh_key::PublicKey;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Most keys of one kind, and most revocations, that a device will hold.
pub const MAX_KEYS: usize = 8;
pub const MAX_REVOKED: usize = 10_000;

/// The body of a trust bundle. Keys are one-line OpenSSH public keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundle {
    /// Only grows. A device refuses a bundle that is older than the one it holds.
    pub version: u64,
    /// The device this bundle is for.
    pub device: DeviceId,
    pub issued_at: Timestamp,
    /// CAs whose session certificates this device accepts.
    pub user_cas: Vec<String>,
    /// Keys that sign challenges and the next bundles: the broker's identity.
    pub broker_keys: Vec<String>,
    /// Serials of session certificates that ended before their time.
    pub revoked_serials: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the bundle is for device {found}, this is {own}")]
    OtherDevice { found: DeviceId, own: DeviceId },
    #[error("the bundle has version {found}, and version {held} is already held")]
    Older { found: u64, held: u64 },
    #[error("{what}: {why}")]
    Key { what: &'static str, why: String },
    #[error("more than {MAX_REVOKED} revoked serials")]
    TooManyRevoked,
}

/// A bundle whose signature, device, version and keys were checked.
#[derive(Clone, Debug)]
pub struct Trusted {
    pub bundle: TrustBundle,
    pub user_cas: Vec<PublicKey>,
    pub broker_keys: Vec<PublicKey>,
}

/// Opens a bundle signed by one of `broker_keys` for `own`. `held` is the version in force, 0 for none;
/// the same version again is accepted, so that a device can reload what it stored.
pub fn open(
    signed: &SignedText,
    broker_keys: &[PublicKey],
    own: &DeviceId,
    held: u64,
) -> Result<Trusted, BundleError> {
    let bundle: TrustBundle = signed.open(broker_keys, Purpose::Bundle, "a trust bundle")?;
    if bundle.device != *own {
        return Err(BundleError::OtherDevice { found: bundle.device, own: own.clone() });
    }
    if bundle.version < held {
        return Err(BundleError::Older { found: bundle.version, held });
    }
    if bundle.revoked_serials.len() > MAX_REVOKED {
        return Err(BundleError::TooManyRevoked);
    }
    let user_cas = read_keys("user_cas", &bundle.user_cas)?;
    let broker_keys = read_keys("broker_keys", &bundle.broker_keys)?;
    Ok(Trusted { bundle, user_cas, broker_keys })
}

fn read_keys(what: &'static str, lines: &[String]) -> Result<Vec<PublicKey>, BundleError> {
    let bad = |why: String| BundleError::Key { what, why };
    if lines.is_empty() || lines.len() > MAX_KEYS {
        return Err(bad(format!("{} keys; 1 to {MAX_KEYS} are allowed", lines.len())));
    }
    lines
        .iter()
        .map(|line| {
            let key = PublicKey::from_openssh(line).map_err(|error| bad(error.to_string()))?;
            if is_acceptable_key(&key) {
                Ok(key)
            } else {
                Err(bad(format!("a key of type {}", key.algorithm())))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_key::PrivateKey;
    use crate::ssh_key::certificate::Builder;
    use crate::ssh_key::private::Ed25519Keypair;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    fn bundle(version: u64) -> TrustBundle {
        TrustBundle {
            version,
            device: "gw-0042".parse().unwrap(),
            issued_at: Timestamp(0),
            user_cas: vec![key(1).public_key().to_openssh().unwrap()],
            broker_keys: vec![key(4).public_key().to_openssh().unwrap()],
            revoked_serials: vec![],
        }
    }

    fn reopen(bundle: &TrustBundle, signer: u8, own: &str, held: u64) -> Result<Trusted, BundleError> {
        let signed = SignedText::seal(&key(signer), Purpose::Bundle, bundle).unwrap();
        open(&signed, &[key(4).public_key().clone()], &own.parse().unwrap(), held)
    }

    #[test]
    fn a_bundle_from_another_key_for_another_device_or_older_is_refused() {
        assert!(reopen(&bundle(5), 4, "gw-0042", 5).is_ok());
        assert!(matches!(reopen(&bundle(5), 2, "gw-0042", 0), Err(BundleError::Signature(_))));
        assert!(matches!(reopen(&bundle(5), 4, "gw-0043", 0), Err(BundleError::OtherDevice { .. })));
        assert!(matches!(reopen(&bundle(5), 4, "gw-0042", 6), Err(BundleError::Older { .. })));
    }

    #[test]
    fn a_ca_key_that_is_itself_a_certificate_is_refused() {
        let mut builder = Builder::new([0; 16], key(1).public_key(), 1, 2).unwrap();
        builder.serial(1).unwrap().key_id("x").unwrap().valid_principal("x").unwrap();
        let certificate = builder.sign(&key(2)).unwrap().to_openssh().unwrap();
        let with_certificate = TrustBundle { user_cas: vec![certificate], ..bundle(1) };
        assert!(matches!(reopen(&with_certificate, 4, "gw-0042", 0), Err(BundleError::Key { .. })));
    }

    #[test]
    fn a_bundle_without_a_ca_is_refused() {
        let none = TrustBundle { user_cas: vec![], ..bundle(1) };
        assert!(matches!(reopen(&none, 4, "gw-0042", 0), Err(BundleError::Key { .. })));
    }
}
