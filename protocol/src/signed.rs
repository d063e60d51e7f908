//! Signed statements: a text, and an OpenSSH signature over it.
//!
//! Signatures are SSHSIG (OpenSSH's PROTOCOL.sshsig), so that a third party checks each of them with
//! `ssh-keygen -Y verify` and no program of ours. The namespace says what a signature is for; a
//! signature made for one purpose is worthless for another.

use crate::ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a signature is for; the SSHSIG namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The broker to a device at the start of a connection: this is me, and this is the time.
    Challenge,
    /// A device to the broker: this TLS connection ends at the holder of my device key.
    Hello,
    /// A new device to the broker, over the enrolment it asks for.
    Enrol,
    /// A session certificate's key, over one `open` frame.
    Open,
    /// The broker to a device: what to believe.
    Bundle,
    /// The broker to anybody: the audit log up to here.
    Checkpoint,
}

impl Purpose {
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Challenge => "daypass-challenge@1",
            Self::Hello => "daypass-hello@1",
            Self::Enrol => "daypass-enrol@1",
            Self::Open => "daypass-open@1",
            Self::Bundle => "daypass-bundle@1",
            Self::Checkpoint => "daypass-checkpoint@1",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the signature is not an OpenSSH signature: {0}")]
    Malformed(String),
    #[error("signed by {found}, which is not a key trusted for this")]
    UnknownKey { found: String },
    #[error("the signature does not match what was signed, or was made for another purpose")]
    Mismatch,
    #[error("signing failed: {0}")]
    Signing(String),
    #[error("what was signed does not read as {what}: {why}")]
    Body { what: &'static str, why: String },
}

/// Longest armour that is read; one by an Ed25519 or P-256 key is under 700 bytes.
const MAX_ARMOUR: usize = 4096;

/// An SSHSIG in its PEM armour.
pub fn sign(key: &PrivateKey, purpose: Purpose, message: &[u8]) -> Result<String, SignatureError> {
    key.sign(purpose.namespace(), HashAlg::Sha512, message)
        .and_then(|sig| sig.to_pem(LineEnding::LF))
        .map_err(|error| SignatureError::Signing(error.to_string()))
}

/// Checks an armoured SSHSIG over `message` against the keys trusted for `purpose`.
pub fn verify(
    trusted: &[PublicKey],
    purpose: Purpose,
    message: &[u8],
    signature: &str,
) -> Result<(), SignatureError> {
    if signature.len() > MAX_ARMOUR {
        return Err(SignatureError::Malformed(format!("longer than {MAX_ARMOUR} bytes")));
    }
    let sig = SshSig::from_pem(signature).map_err(|error| SignatureError::Malformed(error.to_string()))?;
    let key = trusted.iter().find(|key| key.key_data() == sig.public_key()).ok_or_else(|| {
        SignatureError::UnknownKey { found: sig.public_key().fingerprint(HashAlg::Sha256).to_string() }
    })?;
    if !is_acceptable_key(key) {
        return Err(SignatureError::UnknownKey { found: key.algorithm().to_string() });
    }
    key.verify(purpose.namespace(), message, &sig).map_err(|_| SignatureError::Mismatch)
}

/// The key algorithms of this profile: Ed25519, and ECDSA on P-256 for keys in hardware.
/// A key that is itself a certificate is not one of them.
pub fn is_acceptable_key(key: &PublicKey) -> bool {
    matches!(key.algorithm(), Algorithm::Ed25519 | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 })
}

/// `SHA256:…`, as `ssh-keygen -l` prints it.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// A JSON text with the signature over exactly these bytes; nothing in it may be read before
/// [`SignedText::open`] has verified it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedText {
    body: String,
    signature: String,
}

impl SignedText {
    pub fn seal<T: Serialize>(key: &PrivateKey, purpose: Purpose, value: &T) -> Result<Self, SignatureError> {
        let body = serde_json::to_string(value)
            .map_err(|error| SignatureError::Body { what: "JSON", why: error.to_string() })?;
        let signature = sign(key, purpose, body.as_bytes())?;
        Ok(Self { body, signature })
    }

    /// For a signer that never lets go of its key: the body is made first, the signature comes back.
    pub fn from_parts(body: String, signature: String) -> Self {
        Self { body, signature }
    }

    /// The key that claims to have signed this. Nothing is verified: compare it with a pin, then call
    /// [`SignedText::open`] with it.
    pub fn unverified_signer(&self) -> Result<PublicKey, SignatureError> {
        if self.signature.len() > MAX_ARMOUR {
            return Err(SignatureError::Malformed(format!("longer than {MAX_ARMOUR} bytes")));
        }
        let sig = SshSig::from_pem(&self.signature)
            .map_err(|error| SignatureError::Malformed(error.to_string()))?;
        Ok(PublicKey::from(sig.public_key().clone()))
    }

    /// The text with nothing verified, for the one statement that carries the certificate of its own
    /// signer ([`crate::tunnel::open::UnverifiedClaim`]).
    pub(crate) fn unverified_body(&self) -> &str {
        &self.body
    }

    pub fn open<T: DeserializeOwned>(
        &self,
        trusted: &[PublicKey],
        purpose: Purpose,
        what: &'static str,
    ) -> Result<T, SignatureError> {
        verify(trusted, purpose, self.body.as_bytes(), &self.signature)?;
        serde_json::from_str(&self.body)
            .map_err(|error| SignatureError::Body { what, why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_key::private::Ed25519Keypair;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    #[test]
    fn a_statement_opens_only_for_its_key_and_its_purpose() {
        let sealed = SignedText::seal(&key(1), Purpose::Bundle, &vec![1, 2, 3]).unwrap();
        let trusted = [key(1).public_key().clone()];
        assert_eq!(sealed.open::<Vec<u8>>(&trusted, Purpose::Bundle, "list").unwrap(), vec![1, 2, 3]);
        assert_eq!(
            sealed.open::<Vec<u8>>(&trusted, Purpose::Checkpoint, "list"),
            Err(SignatureError::Mismatch)
        );
        assert!(matches!(
            sealed.open::<Vec<u8>>(&[key(2).public_key().clone()], Purpose::Bundle, "list"),
            Err(SignatureError::UnknownKey { .. })
        ));
    }

    #[test]
    fn a_changed_statement_does_not_open() {
        let mut sealed = SignedText::seal(&key(1), Purpose::Bundle, &vec![1, 2, 3]).unwrap();
        sealed.body = "[1,2,4]".to_owned();
        let trusted = [key(1).public_key().clone()];
        assert_eq!(sealed.open::<Vec<u8>>(&trusted, Purpose::Bundle, "list"), Err(SignatureError::Mismatch));
    }
}
