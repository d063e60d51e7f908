//! The device's connection is lost: the session waits for it, and everybody can see that it does.

use super::End;
use super::join::Running;
use super::open::BY_BROKER;
use crate::audit::{self, Event, Kind};
use crate::recording::SessionEvent;
use crate::tunnel::Tunnel;
use daypass_protocol::api::EndReason;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Ends when the device has been away for longer than a session waits; with what to end it then.
pub(super) async fn lasting(running: &Running, mut tunnel: Arc<Tunnel>) -> End {
    let grace = running.grace();
    loop {
        tunnel.closed().await;
        if grace.is_zero() {
            return End::because(EndReason::DeviceLost);
        }
        let lost = Instant::now();
        running.note(SessionEvent::DeviceLost).await;
        audited(running, Kind::SessionWaiting, serde_json::json!({ "grace_s": grace.as_secs() })).await;
        running
            .live()
            .notice(format!("the device's connection was lost; waiting for it, {} at most", spell(grace)));
        let Ok(next) = timeout(grace, running.tunnels().wait_for(&running.live().device)).await else {
            return End::with(EndReason::DeviceLost, format!("it did not come back within {}", spell(grace)));
        };
        tunnel = next;
        let after = lost.elapsed();
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        running.note(SessionEvent::DeviceBack { after_ms }).await;
        audited(running, Kind::SessionResumed, serde_json::json!({ "after_ms": after_ms })).await;
        running.live().notice(format!("the device is back after {}", spell(after)));
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
