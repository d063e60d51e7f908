//! A device's hello, read and judged as far as that takes nothing but its key: `TUNNEL.md` section 4.3.
//!
//! Pure, and with no other module of this crate: `tests/fuzz` feeds it garbage without building the rest.

use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::{Purpose, SignatureError, SignedText};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::tunnel::hello::{Binding, Hello};

/// Who a hello says it is from. Nothing of it is proven, and it is good for one thing: finding the key.
#[derive(Debug)]
pub struct Claim {
    device: DeviceId,
    signed: SignedText,
}

/// Why a hello proves nothing.
#[derive(Debug)]
pub enum Unproven {
    Signature(SignatureError),
    Version(u32),
    /// It was signed for another connection, or for another device than it claimed outside.
    OtherConnection,
}

impl Claim {
    /// The error is in the words of whoever sent the text.
    pub fn read(text: &str) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Outer {
            body: String,
        }
        #[derive(serde::Deserialize)]
        struct Inner {
            device: DeviceId,
        }
        let words = |error: serde_json::Error| error.to_string();
        let signed = serde_json::from_str(text).map_err(words)?;
        let outer: Outer = serde_json::from_str(text).map_err(words)?;
        let inner: Inner = serde_json::from_str(&outer.body).map_err(words)?;
        Ok(Self { device: inner.device, signed })
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The hello, if `key` signed it for the connection of this binding.
    pub fn prove(&self, key: &PublicKey, binding: &Binding) -> Result<Hello, Unproven> {
        let hello: Hello = self
            .signed
            .open(std::slice::from_ref(key), Purpose::Hello, "a hello")
            .map_err(Unproven::Signature)?;
        if hello.v != 1 {
            return Err(Unproven::Version(hello.v));
        }
        if hello.binding != *binding || hello.device != self.device {
            return Err(Unproven::OtherConnection);
        }
        Ok(hello)
    }
}
