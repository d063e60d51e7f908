//! Devices: the connections that their shims keep open to the broker. `protocol/TUNNEL.md` says every
//! byte; [`accept`] is its sections 3 to 5, `connection` section 6, `channel` section 7.

pub mod accept;
mod attention;
mod channel;
mod connection;
mod ends;
mod hello;
mod kept;
mod registry;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use connection::{Gone, OpenAsk, OpenError, Tunnel};
pub use kept::Keeper;
pub use registry::Tunnels;
pub use server::{Limits, TunnelServer};
