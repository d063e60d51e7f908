//! The tunnel between broker and device, `daypass-tunnel/1`. `TUNNEL.md` beside this crate's manifest
//! specifies every byte; this module is its one implementation, used by both ends.

pub mod control;
pub mod frame;
pub mod hello;
pub mod messages;
pub mod open;
pub mod stream;
pub mod unacked;
pub mod waker;

pub use frame::{Frame, FrameError, MAX_DATA, Stream};

/// The WebSocket subprotocol of a tunnel.
pub const TUNNEL_PROTOCOL: &str = "daypass-tunnel-1";
/// The WebSocket subprotocol of an enrolment.
pub const ENROL_PROTOCOL: &str = "daypass-enrol-1";
/// Path of the tunnel on the broker's HTTPS port.
pub const TUNNEL_PATH: &str = "/v1/tunnel";
/// Path of the enrolment on the broker's HTTPS port.
pub const ENROL_PATH: &str = "/v1/enrol";
/// Request header of the upgrade: 32 random bytes of the device, base64url without padding.
pub const NONCE_HEADER: &str = "daypass-nonce";
/// Label of the TLS exporter (RFC 5705, RFC 8446 section 7.5) that binds signatures to one connection.
/// It is asked for with no context and 32 bytes of output.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-daypass-tunnel-1";
/// Largest WebSocket message that a device sends, in bytes: its hello, and every binary one after it.
pub const MAX_HELLO: usize = 64 * 1024;
/// Largest WebSocket message that a broker sends, in bytes: a welcome can carry a whole trust bundle.
pub const MAX_ANSWER: usize = control::MAX_CONTROL;
/// Most yamux streams on one tunnel, the control stream included.
pub const MAX_STREAMS: usize = 32;
/// The yamux receive window of a whole tunnel, in bytes: at least 256 KiB times [`MAX_STREAMS`].
pub const MAX_WINDOW: usize = 16 * 1024 * 1024;
