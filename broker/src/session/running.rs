//! A running session, its channels, and the one place where it ends.

use super::activity::{Terminal, idle};
use super::join::{GOODBYE, join};
use super::open::{BY_BROKER, Opened};
use super::wire::{DeviceChannel, EngineerChannel, ToDevice};
use super::{End, Live, absence, store};
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::recording::{ChannelFacts, RecordError, Recorder, SessionEvent};
use crate::request::OutOfScope;
use crate::tunnel::{Gone, Keeper, OpenAsk, OpenError, Tunnels};
use daypass_protocol::api::EndReason;
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::tunnel::control;
use daypass_protocol::tunnel::frame::CloseCode;
use daypass_protocol::tunnel::open::OpenKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long before the end a terminal is told.
const WARNING: Duration = Duration::from_mins(1);

/// Why a channel does not open, in words for the engineer.
#[derive(Debug, thiserror::Error)]
pub enum ChannelRefused {
    #[error("your grant {0}")]
    NotGranted(#[from] OutOfScope),
    #[error("this session has {0} channels open already; that is the limit")]
    TooMany(u32),
    #[error("{}", .0.message())]
    Over(End),
    #[error("{0}")]
    Device(#[from] OpenError),
    #[error("recording failed, and nothing happens here unrecorded")]
    Recorder,
    #[error("the broker could not open the channel; the cause is in its log")]
    Failed,
}

/// A session that runs. Dropped by the gateway with the connection; what runs for it ends with
/// [`Live::end`].
#[derive(Debug)]
pub struct Running {
    ctx: Ctx,
    live: Arc<Live>,
    certificate: String,
    keeper: Keeper,
    /// Taken when the session ends: without it there is nothing to record into, and no channel opens.
    recorder: Arc<Mutex<Option<Recorder>>>,
    numbers: AtomicU32,
    open: Arc<AtomicU32>,
    channels: TaskTracker,
}

impl Running {
    /// Starts what watches over the session and ends it.
    pub fn start(ctx: &Ctx, opened: Opened) -> Arc<Self> {
        let Opened { live, tunnel, certificate, key, recorder } = opened;
        let failed = recorder.failed();
        let running = Arc::new(Self {
            ctx: ctx.clone(),
            live: live.clone(),
            certificate,
            keeper: Keeper {
                tunnels: ctx.tunnels.clone(),
                key: Arc::new(key),
                over: CancellationToken::new(),
            },
            recorder: Arc::new(Mutex::new(Some(recorder))),
            numbers: AtomicU32::new(0),
            open: Arc::new(AtomicU32::new(0)),
            channels: TaskTracker::new(),
        });
        metrics::gauge!("daypass_sessions_live").increment(1.0);
        let (watch, keeper, waiting) = (live.clone(), ctx.clone(), running.clone());
        ctx.tasks.spawn(async move {
            tokio::select! {
                _ = watch.ended() => {}
                () = expiry(&keeper, &watch) => watch.end(End::because(EndReason::Expired)),
                end = idle(&watch) => watch.end(end),
                error = failed => {
                    tracing::error!(%error, session = %watch.id, "the recorder failed");
                    watch.end(End::with(EndReason::RecorderFailed, error.to_string()));
                }
                end = absence::lasting(&waiting, tunnel) => watch.end(end),
            }
        });
        let (keeper, watch) = (running.clone(), live);
        ctx.tasks.spawn(async move {
            let end = watch.ended().await;
            keeper.finish(&end).await;
        });
        running
    }

    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(super) fn ctx(&self) -> &Ctx {
        &self.ctx
    }

    pub(super) fn tunnels(&self) -> &Tunnels {
        &self.keeper.tunnels
    }

    /// Opens one channel: the gate, the recorder, the device, in this order; then bytes flow.
    pub async fn open_channel(
        &self,
        kind: OpenKind,
        env: Vec<(String, String)>,
        engineer: EngineerChannel,
    ) -> Result<(), ChannelRefused> {
        let result = self.try_open_channel(kind, env, engineer).await;
        if let Err(refused) = &result {
            let event = Event::new(Kind::ChannelRefused, BY_BROKER)
                .session(&self.live.id)
                .device(&self.live.device)
                .detail(serde_json::json!({ "reason": refused.to_string() }));
            if let Err(error) = audit::note(&self.ctx.db, self.ctx.clock.now(), event).await {
                tracing::error!(%error, "a refused channel could not be entered in the audit log");
            }
        }
        result
    }

    async fn try_open_channel(
        &self,
        kind: OpenKind,
        env: Vec<(String, String)>,
        engineer: EngineerChannel,
    ) -> Result<(), ChannelRefused> {
        let channel_kind = kind.channel_kind();
        self.live.scope.permits(&kind)?;
        let limit = self.live.limits.channels.unwrap_or(self.ctx.config.sessions.channels_per_session);
        let room = Room::take(&self.open, limit).ok_or(ChannelRefused::TooMany(limit))?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);

        let recorder = {
            let held = self.recorder.lock().await;
            let recorder = held.as_ref().ok_or_else(|| self.over())?;
            let facts = ChannelFacts {
                kind: channel_kind,
                pty: kind.pty().cloned(),
                command: match &kind {
                    OpenKind::Exec { command, .. } => Some(command.0.clone()),
                    _ => None,
                },
                target: target(&kind),
            };
            recorder.channel(number, facts).await.map_err(|error| {
                self.recorder_failed(&error);
                ChannelRefused::Recorder
            })?
        };

        let ask = OpenAsk {
            session: self.live.id.clone(),
            channel: number,
            login: self.live.login.clone(),
            certificate: self.certificate.clone(),
            kind: kind.clone(),
            env,
        };
        // The end of the session ends the attempt too.
        let opened = tokio::select! {
            _ = self.live.ended() => Err(self.over()),
            opened = self.open_on_device(ask) => opened.map_err(ChannelRefused::from),
        };
        let device = match opened {
            Ok(device) => device,
            Err(refused) => {
                if let Err(error) = recorder.close().await {
                    self.recorder_failed(&error);
                }
                return Err(refused);
            }
        };
        let event = Event::new(Kind::ChannelOpened, BY_BROKER)
            .session(&self.live.id)
            .device(&self.live.device)
            .detail(serde_json::json!({
                "channel": number, "kind": channel_kind, "pty": kind.pty().is_some(),
                "command": match &kind {
                    OpenKind::Exec { command, .. } => Some(String::from_utf8_lossy(&command.0).into_owned()),
                    _ => None,
                },
                "target": target(&kind),
            }));
        if let Err(error) = audit::note(&self.ctx.db, self.ctx.clock.now(), event).await {
            tracing::error!(%error, session = %self.live.id, "a channel could not be entered in the audit log");
            let close = ToDevice::Close { code: CloseCode::Failed, message: "not recorded".to_owned() };
            // Best effort: dropping the channel closes it too.
            let _ = device.input.try_send(close);
            return Err(ChannelRefused::Failed);
        }
        if self.live.is_ended() {
            // Best effort: dropping the channel closes it too.
            let _ = device.input.try_send(ToDevice::Close { code: CloseCode::Ended, message: String::new() });
            if let Err(error) = recorder.close().await {
                self.recorder_failed(&error);
            }
            return Err(self.over());
        }
        metrics::counter!("daypass_channels_opened_total", "kind" => channel_kind.as_str()).increment(1);
        let live = self.live.clone();
        let terminal = kind.pty().map(|_| Terminal::open(&live));
        self.channels.spawn(async move {
            let _room = room;
            join(&live, channel_kind, terminal, engineer, device, recorder).await;
        });
        Ok(())
    }

    async fn open_on_device(&self, ask: OpenAsk) -> Result<DeviceChannel, OpenError> {
        let tunnel = self.ctx.tunnels.get(&self.live.device).ok_or(Gone)?;
        let keeper = (!self.grace().is_zero()).then(|| self.keeper.clone());
        tunnel.open(ask, &self.keeper.key, keeper).await
    }

    /// How long the session waits for its device.
    pub(super) fn grace(&self) -> Duration {
        self.ctx.config.sessions.resume_grace
    }

    /// Records what happened to the whole session.
    pub(super) async fn note(&self, event: SessionEvent) {
        if let Some(recorder) = self.recorder.lock().await.as_ref()
            && let Err(error) = recorder.event(&event).await
        {
            self.recorder_failed(&error);
        }
    }

    fn over(&self) -> ChannelRefused {
        ChannelRefused::Over(
            self.live.end.borrow().clone().unwrap_or_else(|| End::because(EndReason::Closed)),
        )
    }

    fn recorder_failed(&self, error: &RecordError) {
        tracing::error!(%error, session = %self.live.id, "the recorder failed");
        self.live.end(End::with(EndReason::RecorderFailed, error.to_string()));
    }

    /// The one place where a session ends: channels closed, processes on the device told to go, the
    /// recording closed, the end written down.
    async fn finish(&self, end: &End) {
        self.keeper.over.cancel();
        let told = async {
            let tunnel = self.ctx.tunnels.get(&self.live.device).ok_or(Gone)?;
            let (session, reason) = (self.live.id.clone(), end.message());
            tunnel.send(control::ToDevice::EndSession { session, reason }).await
        };
        if !matches!(tokio::time::timeout(GOODBYE, told).await, Ok(Ok(()))) {
            // A device that comes back says what it keeps, and is told then.
            tracing::warn!(session = %self.live.id, "the device could not be told of the end; its own clock ends the session");
        }
        self.channels.close();
        if tokio::time::timeout(GOODBYE * 2, self.channels.wait()).await.is_err() {
            tracing::warn!(session = %self.live.id, "channels were still closing when the session was finished");
        }
        // It takes no place any more, also while its end waits to be written down.
        self.ctx.sessions.remove(&self.live.id);
        let recorder = self.recorder.lock().await.take();
        let mut end = end.clone();
        if let Some(recorder) = recorder
            && let Err(error) = recorder.close(end.reason, end.detail.clone()).await
        {
            tracing::error!(%error, session = %self.live.id, "the recording did not close");
            if end.reason == EndReason::Closed {
                end = End::with(EndReason::RecorderFailed, error.to_string());
            }
        }
        store::finish(&self.ctx, &self.live, &end).await;
        metrics::gauge!("daypass_sessions_live").decrement(1.0);
        tracing::info!(session = %self.live.id, reason = ?end.reason, "session ended");
    }
}

/// Where a forward leads, as it is written down.
fn target(kind: &OpenKind) -> Option<String> {
    match kind {
        OpenKind::Forward { host, port } => {
            ForwardTarget::new(host, (*port).into()).ok().map(|target| target.to_string())
        }
        _ => None,
    }
}

/// Waits for the end of the window, with a warning before it.
async fn expiry(ctx: &Ctx, live: &Live) {
    let left = ctx.clock.now().until(live.ends_at);
    if left > WARNING {
        tokio::time::sleep(left.saturating_sub(WARNING)).await;
        live.notice("your access ends in one minute".to_owned());
    }
    // The wall clock decides, asked again: a sleep may wake early against it.
    loop {
        let left = ctx.clock.now().until(live.ends_at);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// A place among the channels of a session, given back when dropped.
struct Room(Arc<AtomicU32>);

impl Room {
    fn take(open: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1)).ok()?;
        Some(Self(open.clone()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
