//! The body of an `open` frame: what the shim is asked to start, and the proof that it may.

use super::hello::Binding;
use crate::channel::ChannelKind;
use crate::ids::{Login, SessionId};
use crate::signed::{Purpose, SignatureError, SignedText};
use crate::ssh_key::{PrivateKey, PublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Bytes that need not be UTF-8, as base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Octets(pub Vec<u8>);

impl TryFrom<String> for Octets {
    type Error = base64::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Octets> for String {
    fn from(octets: Octets) -> Self {
        STANDARD.encode(octets.0)
    }
}

/// A request for one channel, signed by the session certificate's key for
/// [`crate::signed::Purpose::Open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    pub v: u32,
    /// Of this tunnel; an `open` of another tunnel has another.
    pub binding: Binding,
    /// Strictly greater than in every `open` before on this tunnel; a replayed one is not.
    pub counter: u64,
    pub session: SessionId,
    /// Number of the channel within its session, from 0.
    pub channel: u32,
    pub login: Login,
    /// The session certificate, one line.
    pub certificate: String,
    pub kind: OpenKind,
    /// Environment the engineer's client asked for and the gateway let through.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Nothing is started: this channel lost its tunnel, and goes on here. The rest says what it said when
    /// the channel was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Received>,
}

/// How many bytes of a channel's output the broker has: what comes before is not sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    pub data: u64,
    pub stderr: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OpenKind {
    Shell { pty: Pty },
    Exec { command: Octets, pty: Option<Pty> },
    Sftp,
    Forward { host: String, port: u16 },
}

impl OpenKind {
    pub fn channel_kind(&self) -> ChannelKind {
        match self {
            Self::Shell { .. } => ChannelKind::Shell,
            Self::Exec { .. } => ChannelKind::Exec,
            Self::Sftp => ChannelKind::Sftp,
            Self::Forward { .. } => ChannelKind::Forward,
        }
    }

    pub fn pty(&self) -> Option<&Pty> {
        match self {
            Self::Shell { pty } => Some(pty),
            Self::Exec { pty, .. } => pty.as_ref(),
            Self::Sftp | Self::Forward { .. } => None,
        }
    }

    /// The terminal has another size now; without one, nothing has.
    pub fn resize(&mut self, size: WindowSize) {
        if let Self::Shell { pty } | Self::Exec { pty: Some(pty), .. } = self {
            pty.size = size;
        }
    }
}

/// A pseudo-terminal, RFC 4254 section 6.2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    pub term: String,
    pub size: WindowSize,
    /// Encoded terminal modes as (opcode, argument), RFC 4254 section 8.
    #[serde(default)]
    pub modes: Vec<(u8, u32)>,
}

/// RFC 4254 section 6.7; pixels are 0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub cols: u32,
    pub rows: u32,
    pub width_px: u32,
    pub height_px: u32,
}

/// Why a shim does not open a channel: the body of a `refused` frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub code: RefusedCode,
    /// One line for a person.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// The body does not read.
    Malformed,
    /// Signature, binding, counter or certificate: see the device's log.
    NotAuthorized,
    /// The login is not served on this device.
    UnknownLogin,
    /// The certificate or the device's configuration does not permit this kind of channel.
    KindForbidden,
    /// Remote access is switched off on the device, or the device is suspended.
    SwitchedOff,
    /// A limit of the device is reached.
    Busy,
    /// The process or the connection could not be started.
    Failed,
    /// There is no such channel to resume.
    Gone,
}

/// The environment variables that may travel: `LANG`, `LC_*`, `TERM`, `DAYPASS_*`.
pub fn env_is_allowed(name: &str) -> bool {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    name.len() <= 64
        && (matches!(name, "LANG" | "TERM")
            || name.strip_prefix("LC_").is_some_and(plain)
            || name.strip_prefix("DAYPASS_").is_some_and(plain))
}

/// Most environment variables of one channel, and the longest value in bytes.
pub const MAX_ENV: usize = 32;
pub const MAX_ENV_VALUE: usize = 4096;

/// Who an `open` says has signed it, before anything is verified: enough to look for the one key that
/// must have. Use it for nothing else; [`Open::open_with`] reads the body for good.
#[derive(Clone, Debug, Deserialize)]
pub struct UnverifiedClaim {
    pub certificate: String,
    pub login: Login,
}

impl UnverifiedClaim {
    pub fn read(signed: &SignedText) -> Result<Self, SignatureError> {
        serde_json::from_str(signed.unverified_body())
            .map_err(|error| SignatureError::Body { what: "an open request", why: error.to_string() })
    }
}

impl Open {
    pub fn seal(&self, key: &PrivateKey) -> Result<SignedText, SignatureError> {
        SignedText::seal(key, Purpose::Open, self)
    }

    /// Opens with the key that the certificate inside names. The signature then proves possession of
    /// that key and nothing more: whether the certificate is worth anything is
    /// [`crate::certificate::verify`]'s to say, and binding and counter are the tunnel's.
    pub fn open_with(signed: &SignedText, key: &PublicKey) -> Result<Self, SignatureError> {
        signed.open(std::slice::from_ref(key), Purpose::Open, "an open request")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_environment_variables_travel() {
        for good in ["LANG", "TERM", "LC_ALL", "LC_TIME", "DAYPASS_REASON"] {
            assert!(env_is_allowed(good), "{good}");
        }
        for bad in ["PATH", "LD_PRELOAD", "LC_A=B", "LANGUAGE", "BASH_ENV", "", "LC_\n", "daypass_x"] {
            assert!(!env_is_allowed(bad), "{bad}");
        }
    }
}
