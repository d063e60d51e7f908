//! The device side of Daypass.
//!
//! The shim dials out to its broker and keeps one tunnel open (`protocol/TUNNEL.md`). Over it come
//! requests to start a shell or a command. None is believed for the tunnel's sake: each carries a session
//! certificate, and [`tunnel::permit`] checks it before [`session`] starts anything. Read in this order:
//!
//! - [`run`]: connect, serve, connect again; stop when retired.
//! - [`link`], [`hello`]: TLS, WebSocket, and who is who on this very connection.
//! - [`tunnel`]: yamux, the control stream, one task for each channel.
//! - [`session`]: processes, their terminals, and their end.
//! - [`state`], [`trust`], [`clock`]: what the device holds and believes.
//!
//! Invariants: one thread does everything but name resolution, so a spawn races with nothing; `unsafe`
//! stands in [`session::raw`] and, for one C function, beside `main`; the wall clock is never read; every read
//! from the broker is bounded.

#[cfg(not(any(feature = "post-quantum", feature = "small")))]
compile_error!("choose a TLS provider: feature `post-quantum` (default) or `small`");

pub mod args;
pub mod backoff;
pub mod challenge;
pub mod clock;
pub mod config;
pub mod device;
pub mod enrol;
pub mod hello;
pub mod journal;
pub mod link;
pub mod log;
pub mod run;
pub mod session;
pub mod state;
pub mod status;
mod tls;
pub mod trust;
pub mod tunnel;
