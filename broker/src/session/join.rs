//! Joining: a running session, its channels, and the one place where it ends.

use super::activity::{Terminal, idle};
use super::open::{BY_BROKER, Opened};
use super::wire::{DeviceChannel, EngineerChannel, FromDevice, FromEngineer, ToDevice, ToEngineer};
use super::{End, Live, absence, store};
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::recording::{
    ChannelFacts, ChannelRecorder, NotPassed, Pending, RecordError, Recorder, SessionEvent,
};
use crate::request::OutOfScope;
use crate::tunnel::{Gone, Keeper, OpenAsk, OpenError, Tunnels};
use daypass_protocol::api::EndReason;
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::control;
use daypass_protocol::tunnel::frame::{CloseCode, Exit};
use daypass_protocol::tunnel::open::OpenKind;
use daypass_protocol::tunnel::waker::alone;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long before the end a terminal is told.
const WARNING: Duration = Duration::from_mins(1);
/// What a channel may take to hand over its last messages once the session is over.
const GOODBYE: Duration = Duration::from_secs(2);
/// Pieces of output that may be with the recorder at once; each is at most one frame of the tunnel.
const AHEAD: usize = 4;
/// Exit status of a file transfer that was ended because it could not be read.
const UNREADABLE: u32 = 1;

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

/// How one direction of a channel came to its end.
enum Over {
    /// The engineer's end is gone.
    Engineer,
    /// The device closed the channel.
    Device(CloseCode, String),
    /// The device's end broke off: its tunnel is lost, and the channel with it.
    Lost,
    Recorder(RecordError),
    /// What one side sent cannot be accounted for.
    Unreadable(String),
}

impl From<NotPassed> for Over {
    fn from(why: NotPassed) -> Self {
        match why {
            NotPassed::Recorder(error) => Self::Recorder(error),
            NotPassed::Unreadable(broken) => Self::Unreadable(broken.to_string()),
        }
    }
}

/// Waits until the recorder has what is first in line; `None` where nothing is.
async fn first_recorded(
    recording: &mut VecDeque<(Vec<ToEngineer>, Pending)>,
) -> Option<Result<(), RecordError>> {
    match recording.front_mut() {
        Some((_, pending)) => Some(pending.recorded().await),
        None => None,
    }
}

/// Lets bytes flow until either end closes or the session is over. A byte goes on only after the recorder
/// has it.
async fn join(
    live: &Live,
    kind: ChannelKind,
    terminal: Option<Terminal>,
    engineer: EngineerChannel,
    device: DeviceChannel,
    recorder: ChannelRecorder,
) {
    let EngineerChannel { mut input, output } = engineer;
    let DeviceChannel { input: to_device, output: mut from_device } = device;

    let up = async {
        loop {
            let Some(message) = input.recv().await else { return Over::Engineer };
            // Many messages in a row are one turn; the end may come within it.
            if live.is_ended() {
                std::future::pending::<()>().await;
            }
            let message = match message {
                FromEngineer::Data(bytes) => {
                    let passed = match recorder.pass_in(bytes).await {
                        Ok(passed) => passed,
                        Err(why) => return why.into(),
                    };
                    live.activity.note();
                    for bytes in passed.pieces() {
                        if to_device.send(ToDevice::Data(bytes)).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    continue;
                }
                FromEngineer::Eof => ToDevice::Eof,
                FromEngineer::Resize(size) => {
                    if let Err(error) = recorder.resize(size).await {
                        return Over::Recorder(error);
                    }
                    ToDevice::Resize(size)
                }
                FromEngineer::Signal(name) => ToDevice::Signal(name),
            };
            if to_device.send(message).await.is_err() {
                // What the device still has to say comes down the other way, which then ends.
                std::future::pending::<()>().await;
            }
        }
    };
    let mut alarms = live.alarms.subscribe();
    let alarmed = terminal.is_none() && kind != ChannelKind::Forward;
    let down = async {
        let (mut left, mut over) = (false, None);
        // In order: recorded, then delivered. The writer has the next pieces while it answers for the first.
        let mut recording = VecDeque::<(Vec<ToEngineer>, Pending)>::with_capacity(AHEAD);
        loop {
            tokio::select! {
                biased;
                Some(recorded) = first_recorded(&mut recording) => {
                    let messages = match recorded {
                        Ok(()) => recording.pop_front().map(|(messages, _)| messages),
                        Err(error) => return Over::Recorder(error),
                    };
                    for message in messages.into_iter().flatten() {
                        // Nobody reads any more; what the process still says is recorded all the same.
                        left = left || output.send(message).await.is_err();
                    }
                }
                // One that was missed among many is no loss: the newest is here.
                Ok(line) = alarms.recv(), if alarmed && over.is_none() => {
                    let line = format!("daypass: {line}\n");
                    left = left || output.send(ToEngineer::Stderr(line.into())).await.is_err();
                }
                message = from_device.recv(), if over.is_none() && recording.len() < AHEAD => {
                    let (messages, pending) = match message {
                        None => {
                            over = Some(Over::Lost);
                            continue;
                        }
                        Some(FromDevice::Closed { code, message }) => {
                            over = Some(Over::Device(code, message));
                            continue;
                        }
                        Some(FromDevice::Data(bytes)) => {
                            // What a terminal shows says nothing about whether somebody is there.
                            if terminal.is_none() {
                                live.activity.note();
                            }
                            match recorder.pass_out(bytes).await {
                                Ok((passed, pending)) => {
                                    let messages: Vec<_> = passed.pieces().map(ToEngineer::Data).collect();
                                    (messages, Ok(pending))
                                }
                                Err(why) => return why.into(),
                            }
                        }
                        Some(FromDevice::Stderr(bytes)) => {
                            let pending = recorder.stderr(&bytes).await;
                            (vec![ToEngineer::Stderr(bytes)], pending)
                        }
                        // Each direction of a forward ends by itself, and nothing in it exits.
                        Some(FromDevice::Eof(_)) if kind == ChannelKind::Forward => {
                            (vec![ToEngineer::Eof], recorder.eof())
                        }
                        Some(FromDevice::Exit(_)) if kind == ChannelKind::Forward => continue,
                        // SSH has one EOF for both streams: it is sent with the close.
                        Some(FromDevice::Eof(_)) => continue,
                        Some(FromDevice::Exit(exit)) => {
                            let pending = recorder.exit(&exit).await;
                            (vec![ToEngineer::Exit(exit)], pending)
                        }
                    };
                    match pending {
                        Ok(pending) => recording.push_back((messages, pending)),
                        Err(error) => return Over::Recorder(error),
                    }
                }
                else => return over.unwrap_or(Over::Lost),
            }
        }
    };
    let over = tokio::select! {
        // An end that is due goes before bytes.
        biased;
        end = live.ended() => Err(end),
        over = alone(up) => Ok(over),
        over = alone(down) => Ok(over),
    };

    let lost = matches!(over, Ok(Over::Lost));
    let unreadable = match &over {
        Ok(Over::Unreadable(why)) => Some(format!("daypass: {why}\n")),
        _ => None,
    };
    let (close, failure) = match over {
        Err(end) => (Some((end.close_code(), end.message())), None),
        Ok(Over::Engineer) => (Some((CloseCode::Done, String::new())), None),
        Ok(Over::Device(code, message)) => {
            // The device's own clock, or its owner, may be a moment ahead of the broker's word.
            match code {
                CloseCode::Expired => live.end(End::because(EndReason::Expired)),
                CloseCode::Suspended => live.end(End::with(EndReason::DeviceSuspended, message)),
                CloseCode::Done | CloseCode::Ended => {}
                CloseCode::Protocol | CloseCode::Failed => {
                    tracing::warn!(session = %live.id, ?code, message, "the device closed a channel");
                    let line = format!(
                        "daypass: the device closed the channel: {}\r\n",
                        made_visible(&message, 200)
                    );
                    // Nobody there to read it is no error.
                    let _ = output.try_send(ToEngineer::Stderr(line.into()));
                }
            }
            (None, None)
        }
        Ok(Over::Lost) => {
            live.end(End::with(EndReason::DeviceLost, "the processes of this session are gone"));
            (Some((CloseCode::Failed, String::new())), None)
        }
        Ok(Over::Unreadable(why)) => (Some((CloseCode::Failed, why)), None),
        Ok(Over::Recorder(error)) => (Some((CloseCode::Failed, "recording failed".to_owned())), Some(error)),
    };
    if let Some(error) = failure {
        tracing::error!(%error, session = %live.id, "the recorder failed");
        live.end(End::unrecorded(&error));
    }
    let goodbye = async {
        if let Some((code, message)) = close {
            // A device that is gone needs no goodbye.
            let _ = to_device.send(ToDevice::Close { code, message }).await;
        }
        if lost || live.is_ended() {
            // The gateway says why and closes the channel; a close from here could overtake that line.
            output.closed().await;
        }
        let unreadable = unreadable
            .into_iter()
            .flat_map(|line| [ToEngineer::Stderr(line.into()), ToEngineer::Exit(Exit::Status(UNREADABLE))]);
        for message in unreadable.chain([ToEngineer::Eof, ToEngineer::Close]) {
            // Nor does an engineer who has left.
            let _ = output.send(message).await;
        }
    };
    let _in_time = tokio::time::timeout(GOODBYE, goodbye).await;
    if let Err(error) = recorder.close().await {
        tracing::error!(%error, session = %live.id, "a channel's recording did not close");
        live.end(End::with(EndReason::RecorderFailed, error.to_string()));
    }
}
