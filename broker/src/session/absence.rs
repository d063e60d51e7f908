//! The device is away, or does not answer: the session waits for it, and everybody can see that it does.

use super::End;
use super::open::BY_BROKER;
use super::running::Running;
use crate::audit::{self, Event, Kind};
use crate::recording::SessionEvent;
use crate::tunnel::Tunnel;
use daypass_protocol::api::EndReason;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a command or a file transfer stands still before it is told why. A terminal is told at once.
const STILL: Duration = Duration::from_secs(8);

/// In which way a device is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missed {
    /// Its connection is gone.
    Lost,
    /// Its connection stands, and nobody answers on it.
    Silent,
}

impl Missed {
    fn begins(self, grace: Duration) -> String {
        match self {
            Self::Lost => {
                format!("the device's connection was lost; waiting for it, {} at most", spell(grace))
            }
            Self::Silent => format!("the device does not answer; waiting for it, {} at most", spell(grace)),
        }
    }

    fn is_over(self, after: Duration) -> String {
        match self {
            Self::Lost => format!("the device is back after {}", spell(after)),
            Self::Silent => format!("the device answers again after {}", spell(after)),
        }
    }

    /// What the end of the session says.
    fn lasted(self, grace: Duration) -> String {
        match self {
            Self::Lost => format!("it did not come back within {}", spell(grace)),
            Self::Silent => format!("it did not answer for {}", spell(grace)),
        }
    }
}

/// Ends when the device has been away for longer than a session waits; with what to end it then.
pub(super) async fn lasting(running: &Running, mut tunnel: Arc<Tunnel>) -> End {
    let grace = running.grace();
    loop {
        let missed = tokio::select! {
            biased;
            () = tunnel.closed() => Missed::Lost,
            () = tunnel.answering(false) => Missed::Silent,
        };
        if grace.is_zero() {
            return match missed {
                Missed::Lost => End::because(EndReason::DeviceLost),
                Missed::Silent => End::with(EndReason::DeviceLost, "it does not answer"),
            };
        }
        let since = Instant::now();
        let (live, silent) = (running.live(), missed == Missed::Silent);
        let mut told = silent;
        live.notice(missed.begins(grace));
        if told {
            live.alarm(missed.begins(grace));
        }
        let waited = async {
            let note = async {
                running.note(SessionEvent::DeviceLost).await;
                let detail = serde_json::json!({ "grace_s": grace.as_secs(), "silent": silent });
                audited(running, Kind::SessionWaiting, detail).await;
            };
            let (tunnel, ()) = tokio::join!(back(running), note);
            tunnel
        };
        tokio::pin!(waited);
        let mut next = timeout(if told { grace } else { STILL.min(grace) }, &mut waited).await;
        if next.is_err() && !told && grace > STILL {
            told = true;
            live.alarm(missed.begins(grace));
            next = timeout(grace.saturating_sub(since.elapsed()), &mut waited).await;
        }
        let Ok(next) = next else {
            return End::with(EndReason::DeviceLost, missed.lasted(grace));
        };
        tunnel = next;
        let after = since.elapsed();
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        running.note(SessionEvent::DeviceBack { after_ms }).await;
        audited(running, Kind::SessionResumed, serde_json::json!({ "after_ms": after_ms })).await;
        live.notice(missed.is_over(after));
        if told {
            live.alarm(missed.is_over(after));
        }
    }
}

/// Waits until the device has a tunnel and answers on it.
async fn back(running: &Running) -> Arc<Tunnel> {
    loop {
        let tunnel = running.tunnels().wait_for(&running.live().device).await;
        tokio::select! {
            () = tunnel.answering(true) => return tunnel,
            () = tunnel.closed() => {}
        }
    }
}

fn spell(time: Duration) -> String {
    match time.as_secs() {
        0..2 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 2..120 => format!("{seconds} s"),
        more => format!("{} min", more / 60),
    }
}

async fn audited(running: &Running, kind: Kind, detail: serde_json::Value) {
    let live = running.live();
    let event = Event::new(kind, BY_BROKER).session(&live.id).device(&live.device).detail(detail);
    if let Err(error) = audit::note(&running.ctx().db, running.ctx().clock.now(), event).await {
        tracing::error!(%error, session = %live.id, "the wait for a device could not be entered in the audit log");
    }
}
