//! Processes of a session: how they start, and that none is left at the end.
//!
//! ```text
//! daypass-shim run
//!   └─ session-monitor   one per channel; the parent of last resort (subreaper) of all below
//!        └─ session-leader → exec → the login's shell or command
//!             └─ whatever it starts, in any process group or kernel session
//! ```
//!
//! A process that daemonises leaves its process group and its terminal, but not its monitor: the kernel
//! hands orphans to the nearest subreaper. So the monitor ends a channel by killing until the kernel says
//! that it has no children (`ECHILD`), which is a proof and not a search. When the shim dies, its end of
//! the monitor's socket closes, and the monitor does the same. When a monitor is killed, its orphans come
//! to the shim, which has no other children than monitors ([`process`]).
//!
//! Monitor and leader are this same program, started again: they hold neither the device key nor anything
//! else of the shim's memory, and what they do between fork and exec needs no `unsafe`.

pub mod account;
pub mod leader;
pub mod monitor;
pub mod process;
mod procfs;
pub mod raw;
pub mod sftp;
pub mod terminal;

use daypass_protocol::tunnel::open::Octets;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// First argument of a monitor's command line.
pub const MONITOR: &str = "session-monitor";
/// First argument of a leader's command line.
pub const LEADER: &str = "session-leader";

/// What to start, as whom. Goes from the shim through the monitor to the leader, one line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    pub program: PathBuf,
    /// The program's own name for itself; a login shell's starts with `-`.
    pub arg0: String,
    pub args: Vec<Octets>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    pub home: PathBuf,
    pub user: String,
    pub uid: u32,
    pub gid: u32,
    /// Standard input is a terminal, which becomes the controlling one.
    pub terminal: bool,
}

/// Longest order that is read, in bytes: a command and an environment that fit in an `open` frame.
const MAX_ORDER: u64 = 512 * 1024;

/// Shim to monitor, one line of JSON each. The end of the stream means [`Tell::End`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    /// Send this signal, named without SIG, to the process group.
    Signal(String),
    /// Hang up, then kill whatever is left.
    End,
}

/// Monitor to shim, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Started,
    Failed(String),
    Exited(i32),
    Signalled {
        name: String,
        core: bool,
    },
    /// No process is left.
    Gone,
}
