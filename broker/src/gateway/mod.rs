//! Engineers' SSH: ends it, proves who is there, and hands channels to sessions.
//!
//! ```text
//! ssh -J gateway login@device     front connection ── direct-tcpip ──▶ pipe ── inner connection ─┐
//! ssh login%device@gateway        front connection ──────────────────────────────────────────────┤
//! daypass proxy --fdpass device   ticket ───────────────────────────── direct connection ────────┤
//! daypass proxy device            WebSocket ────────────────────────── direct connection ────────┤
//!                                                                                                ▼
//!                                                     gate ── channel ── SessionDoor ── the device
//! ```
//!
//! `front` accepts, `connection` is one SSH connection of either hop, `gate` decides what exists,
//! `channel` is one channel of a session, `forward` one that leads to a port, `terminal` the person on one
//! that may not begin yet, `jump` the inner hop of `ssh -J`, `direct` the way in by HTTPS, `ticket` the
//! one without a jump, `door` what stands behind.
//! Flow control: the SSH library reopens a channel's window by itself, up to a target that
//! `connection` sets to what is left of the queues' bound; nobody in its loop ever waits.

mod channel;
mod connection;
mod direct;
mod door;
mod forward;
mod front;
mod gate;
mod jump;
mod kex;
mod limits;
mod live;
mod pipe;
mod ssh;
mod terminal;
mod ticket;
mod transport;

pub use direct::{Admitted, Caller, NotLetIn};
pub use door::{
    Client, Door, EndNotice, HostIdentity, NotAuthenticated, NotGranted, Refusal, Refused, RefusedKind,
    SessionDoor, Wanted,
};
pub use front::{Entrance, Gateway, Settings};
pub use limits::Limits;
pub use terminal::{Left, Terminal};
pub use ticket::LIFETIME as TICKET_LIFETIME;
