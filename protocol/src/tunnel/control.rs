//! The control stream: the first yamux stream of a tunnel, opened by the broker.
//!
//! Each message is a `uint32` length and that many bytes of JSON: an object with `v` (1) and `type`.
//! A type that is not known is skipped, so that either end can be newer than the other.

use crate::ids::SessionId;
use crate::signed::SignedText;
use crate::time::Timestamp;
use bytes::{Buf, BufMut, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest control message, in bytes: a bundle with all the revocations it may hold.
pub const MAX_CONTROL: usize = 512 * 1024;

/// Broker to device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToDevice {
    /// Sent first, so that the stream exists; and again as a heartbeat.
    Tick { time: Timestamp },
    /// A newer trust bundle.
    Bundle { bundle: SignedText },
    /// No new channels, and end the running ones.
    Suspend { reason: String },
    /// Channels may be opened again.
    Resume,
    /// End this session's processes now.
    EndSession { session: SessionId, reason: String },
    /// The device left the fleet: wipe keys and state, then stop.
    Retire { reason: String },
    #[serde(other)]
    Unknown,
}

/// Device to broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromDevice {
    /// Answer to a tick, with the sessions of which the device keeps processes. The broker ends those that
    /// it does not know.
    Tock { sessions: Vec<SessionId>, uptime_s: u64 },
    /// This version of the trust bundle is now believed.
    BundleHeld { version: u64 },
    /// A session's last process is gone.
    SessionGone { session: SessionId },
    /// After `retire`: the device key and the state are gone. The last message of a device.
    Wiped,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("a control message of {0} bytes; at most {MAX_CONTROL} are allowed")]
    TooLarge(usize),
    #[error("a control message of version {0}; this program speaks 1")]
    Version(u64),
    #[error("a control message does not read: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u64,
    #[serde(flatten)]
    message: T,
}

pub fn encode<T: Serialize>(message: &T, out: &mut BytesMut) -> Result<(), ControlError> {
    let body = serde_json::to_vec(&Versioned { v: 1, message })?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len as usize <= MAX_CONTROL);
    out.put_u32(len.ok_or(ControlError::TooLarge(body.len()))?);
    out.extend_from_slice(&body);
    Ok(())
}

/// Takes one message from the front of `input`; `None` if it is not whole yet.
pub fn decode<T: DeserializeOwned>(input: &mut BytesMut) -> Result<Option<T>, ControlError> {
    let Some(head) = input.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*head) as usize;
    if len > MAX_CONTROL {
        return Err(ControlError::TooLarge(len));
    }
    if input.len() < 4 + len {
        return Ok(None);
    }
    input.advance(4);
    let body = input.split_to(len);
    let read: Versioned<T> = serde_json::from_slice(&body)?;
    if read.v != 1 {
        return Err(ControlError::Version(read.v));
    }
    Ok(Some(read.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_read_back_and_unknown_types_are_skipped() {
        let mut wire = BytesMut::new();
        let sent = ToDevice::Suspend { reason: "theft".into() };
        encode(&sent, &mut wire).unwrap();
        let mut half = BytesMut::from(&wire[..wire.len() - 1]);
        assert!(decode::<ToDevice>(&mut half).unwrap().is_none());
        assert_eq!(decode::<ToDevice>(&mut wire).unwrap(), Some(sent));
        let newer = br#"{"v":1,"type":"from_the_future","x":1}"#;
        let mut wire = BytesMut::new();
        wire.put_u32(u32::try_from(newer.len()).unwrap());
        wire.extend_from_slice(newer);
        assert_eq!(decode::<ToDevice>(&mut wire).unwrap(), Some(ToDevice::Unknown));
    }

    #[test]
    fn an_oversized_control_message_is_refused_before_it_is_read() {
        let mut wire = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(decode::<ToDevice>(&mut wire), Err(ControlError::TooLarge(_))));
    }
}
