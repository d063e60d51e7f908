//! The hello: both ends prove who they are, and that they mean this TLS connection.
//!
//! The device does not check the broker's TLS certificate against any authority or clock. It checks that
//! a pinned broker key signed the exporter of this very TLS connection, which no one in the middle can
//! obtain. So a wrong clock on the device does no harm, and the broker's TLS certificate may change.

use super::{ENROL_PROTOCOL, TUNNEL_PROTOCOL};
use crate::ids::DeviceId;
use crate::signed::SignedText;
use crate::time::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// 32 random bytes, written as base64url without padding.
pub type Nonce = [u8; 32];

/// Which of the two conversations a binding is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    Tunnel,
    Enrolment,
}

/// Ties signatures to one TLS connection and one pair of nonces; 64 hex digits.
///
/// SHA-256 over: the subprotocol's name, a zero byte, the TLS exporter, the device's nonce, the broker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Binding(String);

impl Binding {
    pub fn new(what: Conversation, exporter: &[u8; 32], device: &Nonce, broker: &Nonce) -> Self {
        let name = match what {
            Conversation::Tunnel => TUNNEL_PROTOCOL,
            Conversation::Enrolment => ENROL_PROTOCOL,
        };
        let hash = Sha256::new()
            .chain_update(name)
            .chain_update([0])
            .chain_update(exporter)
            .chain_update(device)
            .chain_update(broker)
            .finalize();
        Self(crate::text::hex(&hash))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From its 64 digits.
    pub(crate) fn read(digits: &[u8]) -> Option<Self> {
        let plain = digits.len() == 64 && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Some(Self(std::str::from_utf8(digits).ok().filter(|_| plain)?.to_owned()))
    }
}

pub fn encode_nonce(nonce: &Nonce) -> String {
    URL_SAFE_NO_PAD.encode(nonce)
}

pub fn decode_nonce(text: &str) -> Option<Nonce> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// First message, broker to device, signed for [`crate::signed::Purpose::Challenge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub v: u32,
    /// The broker's nonce.
    pub nonce: String,
    pub binding: Binding,
    /// The broker's time, which a device may believe: it is signed over the device's own fresh nonce.
    pub time: Timestamp,
}

/// Second message, device to broker, signed by the device key for [`crate::signed::Purpose::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub v: u32,
    pub device: DeviceId,
    pub binding: Binding,
    /// Version of the trust bundle the device holds.
    pub bundle_version: u64,
    pub shim_version: String,
    /// TLS key exchange as the device saw it, for the record: `X25519MLKEM768`.
    pub tls_group: String,
}

/// Third message, broker to device. The broker was authenticated by its challenge, on this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer<T> {
    Welcome(T),
    Refused { code: RefusalCode, message: String },
}

/// What a welcome to the tunnel carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub v: u32,
    /// Only if newer than the device's.
    pub bundle: Option<SignedText>,
    /// The device's state: `false` while it is suspended; the tunnel stays, no channel is opened.
    pub accepts_sessions: bool,
}

/// Second message of an enrolment, device to broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAsk {
    pub v: u32,
    /// The secret of the join token.
    pub secret: String,
    /// An [`Enrol`], signed by the new device key for [`crate::signed::Purpose::Enrol`].
    pub enrol: SignedText,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    pub v: u32,
    pub binding: Binding,
    /// One-line OpenSSH public key, born on the device.
    pub public_key: String,
    pub serial_number: String,
    /// The id the device would like; the broker derives one from the serial number otherwise.
    pub device: Option<DeviceId>,
    /// If given, must be the product line of the join token.
    pub product_line: Option<String>,
    pub shim_version: String,
}

/// What a welcome to the fleet carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    pub v: u32,
    pub device: DeviceId,
    /// One-line OpenSSH host certificate over the device key.
    pub host_certificate: String,
    pub bundle: SignedText,
    /// The keys to pin: who may sign challenges and bundles.
    pub broker_keys: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The message does not read or has the wrong version; trying again will not help.
    Malformed,
    /// The signature, the binding or the join token's secret is wrong.
    NotAuthentic,
    /// No such device, or its key is not this one.
    UnknownDevice,
    /// Another connection with this device key is alive.
    AlreadyConnected,
    /// The device's state ends its tunnel: quarantined, lost, retired.
    StateForbids,
    /// The join token is used up, expired, revoked, or for another product line.
    TokenUnusable,
    /// The id or serial number is taken.
    Taken,
    /// The broker is at a limit or in trouble; come back later.
    Busy,
}

impl RefusalCode {
    /// Whether connecting again later can succeed without a person doing something.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::AlreadyConnected | Self::StateForbids | Self::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_depends_on_every_part() {
        let base = Binding::new(Conversation::Tunnel, &[1; 32], &[2; 32], &[3; 32]);
        assert_ne!(base, Binding::new(Conversation::Enrolment, &[1; 32], &[2; 32], &[3; 32]));
        assert_ne!(base, Binding::new(Conversation::Tunnel, &[0; 32], &[2; 32], &[3; 32]));
        assert_ne!(base, Binding::new(Conversation::Tunnel, &[1; 32], &[0; 32], &[3; 32]));
        assert_ne!(base, Binding::new(Conversation::Tunnel, &[1; 32], &[2; 32], &[0; 32]));
    }

    #[test]
    fn the_binding_of_the_specification_is_reproduced() {
        assert_eq!(
            Binding::new(Conversation::Tunnel, &[1; 32], &[2; 32], &[3; 32]).0,
            include_str!("../../vectors/binding.hex").trim()
        );
    }

    #[test]
    fn a_nonce_of_another_length_does_not_decode() {
        assert_eq!(decode_nonce(&encode_nonce(&[7; 32])), Some([7; 32]));
        assert_eq!(decode_nonce("AAAA"), None);
        assert_eq!(decode_nonce(&"A".repeat(100_000)), None);
    }
}
