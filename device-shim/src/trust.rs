//! What the device believes: the trust bundle in force, and how it is replaced.

use crate::state::TrustRecord;
use daypass_protocol::bundle::{self, BundleError, Trusted};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::{SignedText, is_acceptable_key};
use daypass_protocol::ssh_key::PublicKey;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("a broker key does not read: {0}")]
    Key(String),
}

/// The bundle in force. Its broker keys are the pins: they alone sign challenges and the next bundle.
#[derive(Debug)]
pub struct Trust {
    own: DeviceId,
    current: Trusted,
}

impl Trust {
    /// Opens what was stored: the bundle, and the keys that were pinned when it was accepted.
    pub fn load(record: &TrustRecord, own: &DeviceId) -> Result<Self, TrustError> {
        let signers = read_keys(&record.signers)?;
        let current = bundle::open(&record.bundle, &signers, own, 0)?;
        Ok(Self { own: own.clone(), current })
    }

    pub fn version(&self) -> u64 {
        self.current.bundle.version
    }

    pub fn broker_keys(&self) -> &[PublicKey] {
        &self.current.broker_keys
    }

    pub fn user_cas(&self) -> &[PublicKey] {
        &self.current.user_cas
    }

    pub fn revoked_serials(&self) -> &[u64] {
        &self.current.bundle.revoked_serials
    }

    /// Checks a bundle from the broker. What comes back is to be stored first and then taken with
    /// [`Trust::take`], so that a device never believes what it would forget.
    pub fn check(&self, signed: &SignedText) -> Result<(Trusted, TrustRecord), TrustError> {
        let next = bundle::open(signed, &self.current.broker_keys, &self.own, self.version())?;
        let signers = self.current.bundle.broker_keys.clone();
        Ok((next, TrustRecord { v: 1, signers, bundle: signed.clone() }))
    }

    pub fn take(&mut self, next: Trusted) {
        self.current = next;
    }
}

/// Reads public keys of the accepted kinds.
pub fn read_keys(lines: &[String]) -> Result<Vec<PublicKey>, TrustError> {
    lines
        .iter()
        .map(|line| match PublicKey::from_openssh(line) {
            Ok(key) if is_acceptable_key(&key) => Ok(key),
            Ok(key) => Err(TrustError::Key(format!("type {} is not accepted", key.algorithm()))),
            Err(error) => Err(TrustError::Key(error.to_string())),
        })
        .collect()
}
