//! What this module needs of the broker's keys, and never more than that.

use crate::db::Tx;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::{Purpose, SignatureError, SignedText};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::time::Timestamp;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the certificate authority made no host certificate: {0}")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} does not serialize: {1}")]
    Body(&'static str, #[source] serde_json::Error),
    #[error("no key of {0} is at hand")]
    NoKey(&'static str),
}

/// The broker's identity towards devices.
pub trait EvidenceSigner: Send + Sync {
    /// An armoured SSHSIG by the first of [`EvidenceSigner::public_keys`].
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<String, TrustError>;
    /// The signing key, then those that devices should accept besides it.
    fn public_keys(&self) -> Vec<PublicKey>;
}

/// The certificate authorities, as far as devices are concerned.
#[async_trait::async_trait]
pub trait HostCertifier: Send + Sync {
    /// A host certificate for `key` in the name of `device`, entered in the register within `tx`; one
    /// line of OpenSSH's form.
    async fn host_certificate(
        &self,
        tx: &mut Tx,
        device: &DeviceId,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<String, TrustError>;
    /// The user CA keys that a device is to believe.
    fn user_cas(&self) -> Vec<PublicKey>;
}

/// Both, as they are handed around.
#[derive(Clone)]
pub struct Trust {
    pub evidence: Arc<dyn EvidenceSigner>,
    pub cas: Arc<dyn HostCertifier>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    pub(crate) fn seal<T: Serialize>(
        &self,
        purpose: Purpose,
        what: &'static str,
        value: &T,
    ) -> Result<SignedText, TrustError> {
        let body = serde_json::to_string(value).map_err(|error| TrustError::Body(what, error))?;
        let signature = self.evidence.sign(purpose, body.as_bytes())?;
        Ok(SignedText::from_parts(body, signature))
    }

    /// The key whose fingerprint a join token pins.
    pub(crate) fn pin(&self) -> Result<PublicKey, TrustError> {
        self.evidence.public_keys().into_iter().next().ok_or(TrustError::NoKey("the broker's identity"))
    }
}

/// Keys as a trust bundle carries them: one line each, without comments.
pub(crate) fn lines(keys: Vec<PublicKey>) -> Result<Vec<String>, TrustError> {
    keys.into_iter()
        .map(|mut key| {
            key.set_comment("");
            key.to_openssh()
                .map_err(|error| TrustError::Signature(SignatureError::Signing(error.to_string())))
        })
        .collect()
}
