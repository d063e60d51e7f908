//! The broker's challenge, judged, `TUNNEL.md` section 4.2: is this our broker, on this very connection?
//!
//! Pure, and with no other module of this crate: `tests/fuzz` feeds it garbage without building the rest.

use daypass_protocol::signed::{Purpose, SignatureError, SignedText};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::hello::{Binding, Challenge, Conversation, Nonce, RefusalCode, decode_nonce};
use std::time::Duration;

/// How long the next message of a hello may take.
pub const STEP: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("the broker was silent for {} seconds", STEP.as_secs())]
    Silent,
    #[error("the connection ended: {0}")]
    Lost(String),
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
    #[error("this is not our broker: {0}")]
    NotOurBroker(#[from] SignatureError),
    #[error("the broker means another TLS connection than this one: somebody is in between")]
    OtherConnection,
    #[error("the broker refused ({code:?}): {message}")]
    Refused { code: RefusalCode, message: String },
}

/// A challenge that was signed by a trusted key for this connection. There is no other way to one.
#[derive(Debug)]
pub struct Accepted {
    binding: Binding,
    time: Timestamp,
}

impl Accepted {
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The broker's time, proven to be no older than this connection.
    pub fn time(&self) -> Timestamp {
        self.time
    }
}

/// Checks a challenge, in the order of `TUNNEL.md` section 4.2.
pub fn check_challenge(
    signed: &SignedText,
    trusted: &[PublicKey],
    what: Conversation,
    exporter: &[u8; 32],
    own_nonce: &Nonce,
) -> Result<Accepted, HelloError> {
    let challenge: Challenge = signed.open(trusted, Purpose::Challenge, "a challenge")?;
    if challenge.v != 1 {
        return Err(HelloError::Malformed(format!("a challenge of version {}", challenge.v)));
    }
    let nonce = decode_nonce(&challenge.nonce)
        .ok_or_else(|| HelloError::Malformed("a challenge without a nonce".to_owned()))?;
    let binding = Binding::new(what, exporter, own_nonce, &nonce);
    if binding != challenge.binding {
        return Err(HelloError::OtherConnection);
    }
    Ok(Accepted { binding, time: challenge.time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use daypass_protocol::ssh_key::PrivateKey;
    use daypass_protocol::ssh_key::private::Ed25519Keypair;
    use daypass_protocol::tunnel::hello::encode_nonce;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    fn challenge(what: Conversation, exporter: u8, device: u8) -> Challenge {
        let nonce = [3; 32];
        Challenge {
            v: 1,
            nonce: encode_nonce(&nonce),
            binding: Binding::new(what, &[exporter; 32], &[device; 32], &nonce),
            time: Timestamp(5),
        }
    }

    fn check(challenge: &Challenge, signer: u8, purpose: Purpose) -> Result<Accepted, HelloError> {
        let signed = SignedText::seal(&key(signer), purpose, challenge).unwrap();
        check_challenge(&signed, &[key(4).public_key().clone()], Conversation::Tunnel, &[1; 32], &[2; 32])
    }

    #[test]
    fn a_challenge_by_the_pinned_key_for_this_connection_is_believed() {
        let accepted = check(&challenge(Conversation::Tunnel, 1, 2), 4, Purpose::Challenge).unwrap();
        assert_eq!(accepted.time(), Timestamp(5));
    }

    #[test]
    fn a_challenge_for_another_connection_is_refused() {
        for (what, exporter, device) in [
            (Conversation::Tunnel, 9, 2),    // a man in the middle: another TLS connection
            (Conversation::Tunnel, 1, 9),    // kept from before: another nonce
            (Conversation::Enrolment, 1, 2), // made for the other conversation
        ] {
            let refused = check(&challenge(what, exporter, device), 4, Purpose::Challenge);
            assert!(matches!(refused, Err(HelloError::OtherConnection)), "{what:?} {exporter} {device}");
        }
    }

    #[test]
    fn a_challenge_by_another_key_or_for_another_purpose_is_refused() {
        let good = challenge(Conversation::Tunnel, 1, 2);
        assert!(matches!(check(&good, 5, Purpose::Challenge), Err(HelloError::NotOurBroker(_))));
        assert!(matches!(check(&good, 4, Purpose::Bundle), Err(HelloError::NotOurBroker(_))));
    }

    #[test]
    fn a_challenge_of_another_version_or_without_a_nonce_is_refused() {
        let good = challenge(Conversation::Tunnel, 1, 2);
        let newer = Challenge { v: 2, ..good.clone() };
        assert!(matches!(check(&newer, 4, Purpose::Challenge), Err(HelloError::Malformed(_))));
        let bare = Challenge { nonce: "short".into(), ..good };
        assert!(matches!(check(&bare, 4, Purpose::Challenge), Err(HelloError::Malformed(_))));
    }
}
