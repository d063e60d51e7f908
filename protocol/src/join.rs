//! Join tokens: what a new device is given so that it can enrol.
//!
//! One line that can be pasted or printed: `dpj1.` and the base64url of a small JSON object. It carries
//! the broker's address, a pin of the broker's identity, and a secret. The broker stores only a hash of
//! the secret.

use crate::signed::fingerprint;
use crate::ssh_key::PublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

const PREFIX: &str = "dpj1.";

/// A join token as it is handed to a device. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// `https://broker.example.com:8443`, without a path.
    #[serde(rename = "u")]
    pub broker_url: String,
    /// `SHA256:…` of the broker's evidence key.
    #[serde(rename = "p")]
    pub broker_pin: String,
    /// 32 random bytes, base64url.
    #[serde(rename = "s")]
    pub secret: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {0}")]
pub struct InvalidJoinToken(&'static str);

impl JoinToken {
    pub fn new(broker_url: String, broker_key: &PublicKey, random: [u8; 32]) -> Self {
        Self { broker_url, broker_pin: fingerprint(broker_key), secret: URL_SAFE_NO_PAD.encode(random) }
    }

    pub fn parse(text: &str) -> Result<Self, InvalidJoinToken> {
        let text = text.trim();
        if text.len() > 2048 {
            return Err(InvalidJoinToken("longer than 2048 bytes"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(InvalidJoinToken("it does not start with dpj1."))?;
        let body =
            URL_SAFE_NO_PAD.decode(body).map_err(|_| InvalidJoinToken("it is cut short or changed"))?;
        let token: Self =
            serde_json::from_slice(&body).map_err(|_| InvalidJoinToken("it is cut short or changed"))?;
        if !token.broker_url.starts_with("https://") {
            return Err(InvalidJoinToken("its broker address is not https"));
        }
        Ok(token)
    }

    /// What the broker stores and looks up: SHA-256 of the secret, in hex.
    pub fn secret_hash(secret: &str) -> String {
        crate::text::hex(&Sha256::digest(secret.as_bytes()))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(body))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, {})", self.broker_url, self.broker_pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_key::PrivateKey;
    use crate::ssh_key::private::Ed25519Keypair;

    #[test]
    fn a_join_token_reads_back_and_never_shows_its_secret_in_debug() {
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
        let token = JoinToken::new("https://127.0.0.1:8443".into(), key.public_key(), [7; 32]);
        assert_eq!(JoinToken::parse(&token.to_string()), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        let text = token.to_string();
        assert!(JoinToken::parse(&text[..text.len() - 3]).is_err());
        assert!(JoinToken::parse("dpj2.AAAA").is_err());
    }
}
