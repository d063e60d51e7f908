//! Words that two programs of Daypass must agree on.
//!
//! The broker, the command line and the shim on the device share these and nothing else: identifiers,
//! the certificate profile and the one verifier that gateway and shim both run, signed statements, the
//! frames of the tunnel (specified byte by byte in `TUNNEL.md`), and the bodies of the HTTP API.
//!
//! There is no clock, no random source, no socket and no runtime in this crate: time and randomness are
//! passed in.
#![forbid(unsafe_code)]

pub mod api;
pub mod bundle;
pub mod certificate;
pub mod channel;
pub mod duration;
pub mod ids;
pub mod join;
pub mod said;
pub mod signed;
pub mod target;
pub mod text;
pub mod time;
pub mod tunnel;

/// The SSH types of this workspace, at the one version that russh uses too.
pub use ssh_key;
