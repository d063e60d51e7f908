//! When somebody last did something in a session, and the end of one in which nobody does.

use super::{End, Live};
use daypass_protocol::api::EndReason;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long before its end a terminal is told.
const WARNING: Duration = Duration::from_mins(1);

/// The last keystroke or transferred byte, and how many terminals are open.
#[derive(Debug)]
pub(super) struct Activity {
    last: Mutex<Instant>,
    terminals: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { last: Mutex::new(Instant::now()), terminals: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Somebody typed, or bytes went through a channel without a terminal.
    pub fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Nothing to be idle in without a terminal: a transfer may be slow.
    fn quiet(&self) -> Duration {
        if self.terminals.load(Ordering::Acquire) == 0 {
            return Duration::ZERO;
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// A terminal that is open; closed when dropped.
#[derive(Debug)]
pub(super) struct Terminal(Arc<Live>);

impl Terminal {
    pub fn open(live: &Arc<Live>) -> Self {
        live.activity.note();
        live.activity.terminals.fetch_add(1, Ordering::AcqRel);
        Self(live.clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.0.activity.terminals.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Returns when nobody has typed for too long; tells the terminals a minute before.
pub(super) async fn idle(live: &Live) -> End {
    let Some(limit) = live.limits.idle else { return std::future::pending().await };
    let warn_at = limit.checked_sub(WARNING).filter(|at| !at.is_zero());
    let mut warned = false;
    loop {
        let quiet = live.activity.quiet();
        if quiet >= limit {
            return End::because(EndReason::Idle);
        }
        let next = match warn_at {
            Some(at) if quiet < at => {
                warned = false;
                at
            }
            Some(_) if !warned => {
                warned = true;
                live.notice("nobody is typing: this session ends in one minute".to_owned());
                limit
            }
            _ => limit,
        };
        tokio::time::sleep(next.saturating_sub(quiet)).await;
    }
}
