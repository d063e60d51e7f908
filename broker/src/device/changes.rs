//! Steps in a device's life that people decide, and who is told about them.

use super::state::{IllegalStep, Step};
use super::store;
use crate::audit::{self, Actor, Event, Kind, Recorded};
use crate::db::Tx;
use daypass_protocol::api::DeviceState;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::text::{MAX_REASON, UnfitText, visible_line};
use daypass_protocol::time::Timestamp;
use tokio::sync::broadcast;

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no device {0}")]
    UnknownDevice(DeviceId),
    #[error(transparent)]
    Illegal(#[from] IllegalStep),
    #[error(transparent)]
    Reason(#[from] UnfitText),
    #[error("say why: the reason stands in the device's ledger")]
    NoReason,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What subscribers of [`Changes`] get, after the change is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChanged {
    pub device: DeviceId,
    pub state: DeviceState,
    pub reason: String,
}

/// Tells whoever holds something of a device that its state has changed: its tunnel, its sessions.
#[derive(Clone, Debug)]
pub struct Changes(broadcast::Sender<DeviceChanged>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::channel(256).0)
    }
}

impl Changes {
    /// A subscriber that lags must look at the database for what it missed.
    pub fn subscribe(&self) -> broadcast::Receiver<DeviceChanged> {
        self.0.subscribe()
    }

    pub fn tell(&self, change: DeviceChanged) {
        // Nobody listening is no error: the state is in the database.
        let _ = self.0.send(change);
    }
}

/// Suspends a device: the state, the ledger and the audit event. Call [`Changes::tell`] after the commit.
pub async fn suspend(
    tx: &mut Tx,
    device: &DeviceId,
    actor: Actor,
    reason: &str,
    now: Timestamp,
) -> Result<(DeviceChanged, Recorded), ChangeError> {
    change(tx, device, DeviceState::Suspended, actor, reason, now).await
}

/// Takes a suspension back.
pub async fn resume(
    tx: &mut Tx,
    device: &DeviceId,
    actor: Actor,
    reason: &str,
    now: Timestamp,
) -> Result<(DeviceChanged, Recorded), ChangeError> {
    change(tx, device, DeviceState::Active, actor, reason, now).await
}

async fn change(
    tx: &mut Tx,
    device: &DeviceId,
    to: DeviceState,
    actor: Actor,
    reason: &str,
    now: Timestamp,
) -> Result<(DeviceChanged, Recorded), ChangeError> {
    let reason = visible_line("the reason", reason, MAX_REASON)?;
    if reason.is_empty() {
        return Err(ChangeError::NoReason);
    }
    let held = store::find_for_update(tx, device)
        .await?
        .ok_or_else(|| ChangeError::UnknownDevice(device.clone()))?;
    // Only what was suspended is resumed: a device that is lost comes back by another decision.
    if to == DeviceState::Active && held.state != DeviceState::Suspended {
        return Err(IllegalStep { from: Some(held.state), to }.into());
    }
    let step = Step::new(Some(held.state), to)?;
    store::take_step(tx, device, step).await?;
    let recorded = enter(tx, device, step, actor, &reason, now).await?;
    Ok((DeviceChanged { device: device.clone(), state: to, reason }, recorded))
}

/// Enters a step that a device just took into its ledger and into the audit log.
pub(crate) async fn enter(
    tx: &mut Tx,
    device: &DeviceId,
    step: Step,
    actor: Actor,
    reason: &str,
    now: Timestamp,
) -> Result<Recorded, sqlx::Error> {
    let by = match &actor {
        Actor::Person { email, .. } if !email.is_empty() => email.clone(),
        Actor::Person { id, .. } => id.to_string(),
        Actor::Device(_) => "device".to_owned(),
        Actor::Broker | Actor::Stranger(_) => "broker".to_owned(),
    };
    store::add_ledger_entry(tx, device, step, &by, reason, now).await?;
    let event = Event::new(Kind::DeviceStateChanged, actor).device(device).detail(serde_json::json!({
        "from": super::state::origin(step.from()),
        "to": super::state::as_str(step.to()),
        "reason": reason,
    }));
    audit::append(tx, now, event).await
}

#[cfg(test)]
mod tests;
