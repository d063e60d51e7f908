//! The bounds of the gateway.

use crate::waiting::Bounds;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time from accepting a connection to a proven person; on each hop.
    pub login_grace: Duration,
    /// Connections with a proven person.
    pub connections: usize,
    /// Connections whose person is not proven yet.
    pub unproven: Bounds,
    /// Refused proofs before a connection is closed. Agents offer several keys.
    pub auth_attempts: usize,
    /// Channels open at once on one connection; OpenSSH's `MaxSessions`.
    pub channels: usize,
    /// Channels in the life of one connection.
    pub channels_in_life: usize,
    /// SSH window of a channel in bytes: what a client may send before it is taken.
    pub window: u32,
    /// Bytes that may wait towards a client before its channels wait.
    pub egress: usize,
    /// Bytes that may wait towards a client before it is disconnected: control messages count too, and
    /// they do not wait.
    pub egress_hard: usize,
    /// Time for one step of the door: proving, beginning, opening.
    pub step: Duration,
    /// Time for last lines to leave a connection that is being closed.
    pub linger: Duration,
    /// Silence before the client is asked whether it lives, and how often it may not answer.
    pub keepalive: Duration,
    pub keepalive_max: usize,
    /// Bytes of a command.
    pub command: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            login_grace: Duration::from_secs(20),
            connections: 1000,
            unproven: Bounds { altogether: 512, per_source: 16 },
            auth_attempts: 10,
            channels: 10,
            channels_in_life: 2048,
            window: 2 * 1024 * 1024,
            egress: 256 * 1024,
            egress_hard: 4 * 1024 * 1024,
            step: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            keepalive: Duration::from_secs(30),
            keepalive_max: 6,
            command: 16 * 1024,
        }
    }
}
