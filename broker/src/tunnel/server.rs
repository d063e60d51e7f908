//! What the broker does for its devices' tunnels: lets them in, tells them of changes, remembers them.

use super::connection::{Established, Tunnel};
use super::ends::{Ended, Ends};
use super::hello::{Claim, Unproven};
use super::registry::{Taken, Tunnels};
use crate::audit::{self, Actor, Event, Kind};
use crate::clock::Clock;
use crate::db::Db;
use crate::device::{
    self, Admission, BundleMakeError, ChangeError, Changes, DeviceChanged, Trust, admission, current_bundle,
    store,
};
use crate::http::connection::TlsFacts;
use crate::session::Sessions;
use crate::waiting::{Again, Bounds, Waiting};
use axum::extract::ws::WebSocket;
use daypass_protocol::api::DeviceState;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::SignatureError;
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::control::ToDevice;
use daypass_protocol::tunnel::hello::{Binding, Hello, RefusalCode, Welcome};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Every time limit and number of the tunnels.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For each message of a hello.
    pub hello: Duration,
    /// Hellos and enrolments that were not answered yet, by whoever it may be.
    pub hellos: Bounds,
    /// Of these, so many are judged at the same time; the others wait for it.
    pub judged: usize,
    /// How long a living tunnel has to answer when the same device connects again.
    pub probe: Duration,
    /// Silence after which the broker pings: longer than the device's own 240 seconds.
    pub silence: Duration,
    /// How long after that ping anything has to be heard.
    pub pong: Duration,
    /// The same two while a channel is open or being opened: somebody waits in front of each.
    pub attended_silence: Duration,
    pub attended_pong: Duration,
    /// How much longer a device that does not answer keeps its connection: those who wait are told, and what
    /// only stood still for a moment needs no new one.
    pub forbearance: Duration,
    /// Between ticks on the control stream. Only the first one is waited for; each costs some 900 bytes.
    pub heartbeat: Duration,
    /// For one message on the control stream.
    pub control_write: Duration,
    /// From an `open` to its answer.
    pub open: Duration,
    /// At the latest, from taking bytes over to their ack.
    pub ack: Duration,
    /// For the rest of a channel, after the session has let go of it.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(20),
            hellos: Bounds { altogether: 2048, per_source: 1024 },
            judged: 32,
            probe: Duration::from_secs(5),
            silence: Duration::from_mins(5),
            pong: Duration::from_secs(20),
            attended_silence: Duration::from_secs(5),
            attended_pong: Duration::from_secs(5),
            forbearance: Duration::from_secs(20),
            heartbeat: Duration::from_hours(1),
            control_write: Duration::from_secs(20),
            open: Duration::from_secs(10),
            ack: Duration::from_millis(250),
            drain: Duration::from_secs(10),
        }
    }
}

/// Why a device was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("the hello does not read: {0}")]
    Malformed(String),
    #[error("the hello has version {0}; this broker speaks 1")]
    Version(u32),
    #[error("device {0} is not in the inventory, or has no key")]
    UnknownDevice(DeviceId),
    #[error("the hello is not signed by the key of device {0}: {1}")]
    Signature(DeviceId, SignatureError),
    #[error("the hello was signed for another connection")]
    OtherConnection(DeviceId),
    #[error("a device that is {1:?} has no tunnel")]
    State(DeviceId, DeviceState),
    #[error("another connection with this device's key is alive, from {1}")]
    AlreadyConnected(DeviceId, SocketAddr),
    #[error("another connection of this device is just being set up")]
    Coming(DeviceId),
    #[error("there was no room to judge it in time")]
    NoRoom,
    #[error(transparent)]
    Bundle(#[from] BundleMakeError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl HelloError {
    pub(super) fn code(&self) -> RefusalCode {
        match self {
            Self::Malformed(_) | Self::Version(_) => RefusalCode::Malformed,
            // One answer for both: whoever cannot sign learns nothing about the inventory.
            Self::UnknownDevice(_) | Self::Signature(..) => RefusalCode::UnknownDevice,
            Self::OtherConnection(_) => RefusalCode::NotAuthentic,
            Self::State(..) => RefusalCode::StateForbids,
            Self::AlreadyConnected(..) => RefusalCode::AlreadyConnected,
            Self::Coming(_) | Self::NoRoom | Self::Bundle(_) | Self::Database(_) => RefusalCode::Busy,
        }
    }

    /// What the far side is told.
    pub(super) fn message(&self) -> &'static str {
        match self.code() {
            RefusalCode::Malformed => "the hello does not read",
            RefusalCode::UnknownDevice => "no such device, or its key is not this one",
            RefusalCode::NotAuthentic => "the hello is not for this connection",
            RefusalCode::StateForbids => "this device's state allows no tunnel",
            RefusalCode::AlreadyConnected => "another connection with this device's key is alive",
            RefusalCode::TokenUnusable | RefusalCode::Taken | RefusalCode::Busy => {
                "the broker is busy; try again later"
            }
        }
    }

    /// The device that proved to be itself, if the refusal came after that.
    fn proven(&self) -> Option<&DeviceId> {
        match self {
            Self::OtherConnection(id) | Self::State(id, _) | Self::AlreadyConnected(id, _) => Some(id),
            _ => None,
        }
    }
}

/// Everything that the tunnels need.
#[derive(Debug)]
pub struct TunnelServer {
    pub(super) db: Db,
    pub(super) clock: Clock,
    pub(super) trust: Trust,
    pub(super) limits: Limits,
    pub(super) hellos: Waiting,
    pub(super) again: Again,
    judging: Semaphore,
    tunnels: Tunnels,
    sessions: Sessions,
    changes: Changes,
    strangers: Mutex<Strangers>,
    pub(super) ends: Ends,
}

/// How many refusals of strangers went into the audit log in this minute: whoever proves nothing must
/// not be able to fill it. The rest is in the program's log.
#[derive(Debug)]
struct Strangers {
    since: Instant,
    entered: u32,
}

const STRANGERS_PER_MINUTE: u32 = 60;

impl TunnelServer {
    pub fn new(db: Db, clock: Clock, trust: Trust, limits: Limits, sessions: Sessions) -> Arc<Self> {
        Arc::new(Self {
            ends: Ends::start(db.clone(), clock.clone()),
            db,
            clock,
            trust,
            limits,
            hellos: Waiting::new(limits.hellos),
            again: Again::default(),
            judging: Semaphore::new(limits.judged),
            tunnels: Tunnels::default(),
            sessions,
            changes: Changes::default(),
            strangers: Mutex::new(Strangers { since: Instant::now(), entered: 0 }),
        })
    }

    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Suspends a device: commits, then tells the device and everybody who subscribed to
    /// [`TunnelServer::changes`].
    pub async fn suspend(
        &self,
        device: &DeviceId,
        actor: Actor,
        reason: &str,
    ) -> Result<DeviceChanged, ChangeError> {
        let mut tx = self.db.begin().await?;
        let (change, recorded) = device::suspend(&mut tx, device, actor, reason, self.clock.now()).await?;
        tx.commit(recorded).await?;
        self.tell(change.clone()).await;
        Ok(change)
    }

    /// Takes a suspension back.
    pub async fn resume(
        &self,
        device: &DeviceId,
        actor: Actor,
        reason: &str,
    ) -> Result<DeviceChanged, ChangeError> {
        let mut tx = self.db.begin().await?;
        let (change, recorded) = device::resume(&mut tx, device, actor, reason, self.clock.now()).await?;
        tx.commit(recorded).await?;
        self.tell(change.clone()).await;
        Ok(change)
    }

    /// Makes a committed change of state true for the device's tunnel and for all who subscribed.
    pub async fn tell(&self, change: DeviceChanged) {
        if let Some(tunnel) = self.tunnels.get(&change.device) {
            apply(&tunnel, change.state, &change.reason).await;
        }
        self.changes.tell(change);
    }

    /// Sends a device its trust bundle, if it has changed since the one it was last given.
    pub async fn push_bundle(&self, tunnel: &Tunnel) -> Result<(), BundleMakeError> {
        let mut tx = self.db.begin().await?;
        let made = current_bundle(&mut tx, &self.trust, tunnel.device(), 0, self.clock.now()).await?;
        tx.commit_housekeeping("the version of a trust bundle that says what the broker already believes")
            .await?;
        if tunnel.is_news(made.version) {
            // A device that is gone gets it with its next welcome.
            let _ = tunnel.send(ToDevice::Bundle { bundle: made.signed }).await;
        }
        Ok(())
    }

    /// [`TunnelServer::push_bundle`] for every device that is connected: after a key has changed.
    pub async fn push_bundles(&self) -> Result<(), BundleMakeError> {
        for tunnel in self.tunnels.all() {
            self.push_bundle(&tunnel).await?;
        }
        Ok(())
    }

    /// Ends every tunnel: the broker stops.
    pub fn close_all(&self) {
        for tunnel in self.tunnels.all() {
            tunnel.close("the broker stops");
        }
    }

    /// Waits until the end of every tunnel is written down. What is not within `patience` is counted.
    pub async fn settle(&self, patience: Duration) -> Result<(), usize> {
        let settled = async {
            while !self.tunnels.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.ends.written().await;
        };
        tokio::time::timeout(patience, settled).await.map_err(|_| self.tunnels.len() + self.ends.left())
    }

    /// Waits for room to judge somebody who has said their part; `None` when there was none for half of the time
    /// that a device waits. A fleet that comes back at once is taken in as fast as the database goes. Whoever
    /// would be judged after they have left is better told to come again: else a broker that is slow for a moment
    /// judges none but those, and they come again all the same.
    pub(super) async fn room_to_judge(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(self.limits.hello / 2, self.judging.acquire()).await.ok()?.ok()
    }

    /// Checks a hello, takes the device's place in the registry, and records the connection. Whatever becomes
    /// of it, [`TunnelServer::serve`] or [`Ends::add`] has to record its end.
    pub(super) async fn admit(
        &self,
        text: &str,
        binding: &Binding,
        facts: &TlsFacts,
    ) -> Result<Admitted, HelloError> {
        match self.judge(text, binding, facts).await {
            Ok(admitted) => Ok(admitted),
            Err(refused) => {
                tracing::warn!(peer = %facts.peer, cause = %refused, "a device was refused");
                self.record_refusal(&refused, facts.peer).await?;
                Err(refused)
            }
        }
    }

    async fn judge(&self, text: &str, binding: &Binding, facts: &TlsFacts) -> Result<Admitted, HelloError> {
        let claim = Claim::read(text).map_err(|error| HelloError::Malformed(made_visible(&error, 300)))?;
        let claimed = claim.device().clone();
        let device = store::find(self.db.pool(), &claimed)
            .await?
            .ok_or_else(|| HelloError::UnknownDevice(claimed.clone()))?;
        let key = device.public_key.as_deref().and_then(|line| PublicKey::from_openssh(line).ok());
        let key = key.ok_or_else(|| HelloError::UnknownDevice(claimed.clone()))?;
        let hello = claim.prove(&key, binding).map_err(|unproven| match unproven {
            Unproven::Signature(error) => HelloError::Signature(claimed.clone(), error),
            Unproven::Version(version) => HelloError::Version(version),
            Unproven::OtherConnection => HelloError::OtherConnection(claimed),
        })?;
        let id = hello.device.clone();
        if admission(device.state) == Admission::Nothing {
            return Err(HelloError::State(id, device.state));
        }
        let place = self.tunnels.reserve(&id, self.limits.probe).await.map_err(|taken| match taken {
            Taken::Alive(peer) => HelloError::AlreadyConnected(id.clone(), peer),
            Taken::Coming => HelloError::Coming(id.clone()),
        })?;
        // Only now, with the place taken: a change that is committed after this finds the tunnel, or is
        // found when the tunnel has started.
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        let device = store::find_for_update(&mut tx, &id)
            .await?
            .ok_or_else(|| HelloError::UnknownDevice(id.clone()))?;
        let accepts_sessions = match admission(device.state) {
            Admission::Sessions => true,
            Admission::TunnelOnly => false,
            Admission::Nothing => return Err(HelloError::State(id, device.state)),
        };
        let made = current_bundle(&mut tx, &self.trust, &id, hello.bundle_version, now).await?;
        store::seen(&mut tx, &id, Some(&made_visible(&hello.shim_version, 100)), now).await?;
        let event = Event::new(Kind::DeviceConnected, Actor::Device(id.clone())).device(&id).detail(
            serde_json::json!({
                "from": facts.peer,
                "tls_group": facts.group,
                "device_tls_group": made_visible(&hello.tls_group, 100),
                "shim_version": made_visible(&hello.shim_version, 100),
            }),
        );
        let recorded = audit::append(&mut tx, now, event).await?;
        tx.commit(recorded).await?;
        let newer = made.version > hello.bundle_version;
        Ok(Admitted {
            place,
            welcome: Welcome { v: 1, bundle: newer.then_some(made.signed), accepts_sessions },
            state: device.state,
            bundle_version: made.version,
            hello,
        })
    }

    async fn record_refusal(&self, refused: &HelloError, peer: SocketAddr) -> Result<(), sqlx::Error> {
        let actor = match refused.proven() {
            Some(device) => Actor::Device(device.clone()),
            None if self.may_enter_stranger() => Actor::Stranger(peer.to_string()),
            None => return Ok(()),
        };
        let mut events = Vec::new();
        let detail = serde_json::json!({ "cause": refused.to_string(), "from": peer });
        let mut event = Event::new(Kind::DeviceRefused, actor.clone()).detail(detail);
        event.device = refused.proven().cloned();
        events.push(event);
        if let HelloError::AlreadyConnected(device, first) = refused {
            let detail = serde_json::json!({ "first_from": first, "second_from": peer });
            events.push(Event::new(Kind::CloneSuspected, actor).device(device).detail(detail));
        }
        let mut tx = self.db.begin().await?;
        let mut last = None;
        for event in events {
            last = Some(audit::append(&mut tx, self.clock.now(), event).await?);
        }
        if let Some(recorded) = last {
            tx.commit(recorded).await?;
        }
        Ok(())
    }

    pub(super) fn may_enter_stranger(&self) -> bool {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.since.elapsed() >= Duration::from_mins(1) {
            *strangers = Strangers { since: Instant::now(), entered: 0 };
        }
        strangers.entered = strangers.entered.saturating_add(1);
        strangers.entered <= STRANGERS_PER_MINUTE
    }

    /// The whole life of a tunnel, from its welcome on.
    pub(super) async fn serve(
        &self,
        socket: WebSocket,
        admitted: Admitted,
        binding: Binding,
        tls_group: String,
        peer: SocketAddr,
    ) {
        let id = admitted.hello.device.clone();
        let established = Established {
            device: id.clone(),
            tls_group,
            peer,
            binding,
            accepts_sessions: admitted.welcome.accepts_sessions,
            bundle_version: admitted.bundle_version,
        };
        let (tunnel, life) =
            Tunnel::start(socket, established, self.limits, self.clock.clone(), self.sessions.clone());
        admitted.place.fill(tunnel.clone());
        tracing::info!(device = %id, %peer, group = tunnel.tls_group(), "a device is connected");
        let (why, ()) = tokio::join!(Box::pin(life), Box::pin(self.catch_up(&tunnel, admitted.state)));
        tunnel.close(&why);
        tracing::info!(device = %id, %peer, %why, "a device is disconnected");
        // Before the registry is empty: who waits for the last one waits for this too.
        self.ends.add(Ended { device: id, peer, why });
        self.tunnels.remove(&tunnel);
    }

    /// Finds the change of state that was committed between the hello's judgement and the tunnel's entry
    /// in the registry.
    pub(super) async fn catch_up(&self, tunnel: &Tunnel, told: DeviceState) {
        match store::find(self.db.pool(), tunnel.device()).await {
            Ok(Some(device)) if device.state == told => {}
            Ok(Some(device)) => apply(tunnel, device.state, "the device's state has changed").await,
            Ok(None) => tunnel.close("the device is not in the inventory any more"),
            // Without knowing the state, nothing may run on it.
            Err(error) => tunnel.close(&format!("the device's state could not be read: {error}")),
        }
    }
}

/// A hello that convinced.
#[derive(Debug)]
pub(super) struct Admitted {
    place: super::registry::Place,
    pub(super) welcome: Welcome,
    state: DeviceState,
    bundle_version: u64,
    pub(super) hello: Hello,
}

async fn apply(tunnel: &Tunnel, state: DeviceState, reason: &str) {
    // A tunnel that is gone needs no telling: its device learns with its next hello.
    match admission(state) {
        Admission::Sessions => {
            tunnel.set_accepts_sessions(true);
            let _ = tunnel.send(ToDevice::Resume).await;
        }
        Admission::TunnelOnly => {
            tunnel.set_accepts_sessions(false);
            let _ = tunnel.send(ToDevice::Suspend { reason: reason.to_owned() }).await;
        }
        Admission::Nothing if state == DeviceState::Retired => {
            tunnel.set_accepts_sessions(false);
            let _ = tunnel.send(ToDevice::Retire { reason: reason.to_owned() }).await;
        }
        Admission::Nothing => tunnel.close(&format!("the device is {state:?}")),
    }
}
