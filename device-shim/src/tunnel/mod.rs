//! The tunnel: yamux over the WebSocket, the control stream, and a task for each channel.
//!
//! One task polls the yamux connection all the time; everybody else only touches streams. When the
//! connection is lost, its channels are kept for a while: the next one may go on with them.

pub mod channel;
mod connection;
pub mod control;
pub mod flow;
pub mod forward;
pub mod permit;
pub mod socket;
pub mod source;

use crate::device::Device;
use crate::hello::{HelloError, check_challenge};
use crate::link::{self, Link, LinkError};
use crate::note;
use crate::state::StateError;
use connection::Connection;
use daypass_protocol::ids::SessionId;
use daypass_protocol::signed::{Purpose, SignatureError, SignedText};
use daypass_protocol::tunnel::MAX_STREAMS;
use daypass_protocol::tunnel::control::FromDevice;
use daypass_protocol::tunnel::hello::{Binding, Conversation, Hello, Welcome};
use daypass_protocol::tunnel::open::{Received, RefusedCode};
use daypass_protocol::tunnel::stream;
use flow::Link as ChannelLink;
use permit::{Facts, Gate, Permit, Refusal};
use socket::{HalfOpen, Socket};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub type FrameReader = stream::FrameReader<yamux::Stream>;
pub type FrameWriter = stream::FrameWriter<yamux::Stream>;

/// How long a stopping shim waits for its last words to be taken.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the hello cannot be signed: {0}")]
    Sign(SignatureError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the broker's trust bundle is not acceptable: {0}")]
    Bundle(#[from] crate::device::DeviceError),
    #[error("the tunnel ended: {why}")]
    Lost { why: String, half_open: bool },
}

/// How a tunnel ended without an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The device left its fleet; key and state are gone.
    Retired,
    /// This program was asked to stop.
    Stopping,
}

/// Why running channels are ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Expired,
    Ended(String),
    Revoked,
    Suspended(String),
    Stopping,
}

impl End {
    pub fn words(&self) -> String {
        match self {
            Self::Expired => "the time of this session is over".to_owned(),
            Self::Ended(reason) => format!("the session was ended: {reason}"),
            Self::Revoked => "the session was revoked".to_owned(),
            Self::Suspended(reason) => format!("the device was suspended: {reason}"),
            Self::Stopping => "the device's shim is stopping".to_owned(),
        }
    }
}

struct Running {
    session: SessionId,
    channel: u32,
    serial: u64,
    end: watch::Sender<Option<End>>,
    /// Where it takes a stream of the next tunnel.
    links: mpsc::Sender<ChannelLink>,
}

/// What belongs to the present connection alone.
struct Up {
    binding: Binding,
    gate: Gate,
    reports: mpsc::Sender<FromDevice>,
    /// Ended sessions whose last process is awaited, to report it.
    awaited: Vec<SessionId>,
}

#[derive(Default)]
struct Table {
    up: Option<Up>,
    running: HashMap<u64, Running>,
    next: u64,
}

/// What an `open` that was judged is good for.
#[derive(Debug)]
pub enum Admitted {
    First(Box<Permit>, Place),
    /// A channel that is running: here it takes the stream, and this much of its output is known.
    Again(mpsc::Sender<ChannelLink>, Received),
}

/// A channel's place in its tunnel's table, given up when the channel is over however it ends.
#[derive(Debug)]
pub struct Place {
    tunnel: Arc<Tunnel>,
    id: u64,
    /// Turns to `Some` when the channel has to end.
    end: watch::Receiver<Option<End>>,
    /// Streams of later tunnels.
    links: mpsc::Receiver<ChannelLink>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tunnel.leave(self.id);
    }
}

/// The tunnel that the device has now, and the channels, which may outlive it.
pub struct Tunnel {
    pub device: Arc<Device>,
    table: Mutex<Table>,
    /// How many channels run.
    count: watch::Sender<usize>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnel({:?})", self.device)
    }
}

impl Tunnel {
    pub fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device, table: Mutex::default(), count: watch::Sender::new(0) })
    }

    /// Whether channels run.
    pub fn is_busy(&self) -> bool {
        *self.count.borrow() > 0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges an `open` and enters the channel in the table, in one step: a session that is ended in
    /// between cannot slip through.
    pub fn admit(self: &Arc<Self>, signed: &SignedText) -> Result<Admitted, Refusal> {
        let device = &self.device;
        let trust = device.trust();
        let mut table = self.table();
        let Table { up, running, next } = &mut *table;
        let Some(up) = up else { return Err(Refusal::new(RefusedCode::Gone, "no tunnel", "no tunnel")) };
        let facts = Facts {
            own: &device.identity.device,
            trust: &trust,
            clock: &device.clock,
            binding: &up.binding,
            logins: &device.config.logins,
            forward: &device.config.forward,
            remote_access: device.config.remote_access,
            open_channels: running.len(),
            max_channels: device.config.max_channels,
        };
        let permit = permit::judge(signed, &facts, &mut up.gate)?;
        if let Some(received) = permit.resume() {
            let kept = running.values().find(|running| {
                running.session == *permit.session()
                    && running.channel == permit.channel()
                    && running.serial == permit.serial()
                    && running.end.borrow().is_none()
                    && !running.links.is_closed()
            });
            let message = "the device does not have this channel any more";
            let gone = || Refusal::new(RefusedCode::Gone, message, message);
            return kept.map(|kept| Admitted::Again(kept.links.clone(), received)).ok_or_else(gone);
        }
        let (end, ended) = watch::channel(None);
        let (links, linked) = mpsc::channel(1);
        let id = *next;
        *next += 1;
        let (session, channel) = (permit.session().clone(), permit.channel());
        running.insert(id, Running { session, channel, serial: permit.serial(), end, links });
        self.count.send_replace(running.len());
        Ok(Admitted::First(
            Box::new(permit),
            Place { tunnel: Arc::clone(self), id, end: ended, links: linked },
        ))
    }

    /// A channel's last process is gone.
    fn leave(&self, id: u64) {
        let mut table = self.table();
        let Table { up, running, .. } = &mut *table;
        let Some(left) = running.remove(&id) else { return };
        self.count.send_replace(running.len());
        if let Some(up) = up
            && running.values().all(|other| other.session != left.session)
            && let Some(at) = up.awaited.iter().position(|session| *session == left.session)
        {
            up.awaited.swap_remove(at);
            // There is room for one for each channel; a control stream that ended needs none.
            let _ = up.reports.try_send(FromDevice::SessionGone { session: left.session });
        }
    }

    /// Ends the channels that `which` picks.
    fn end(&self, why: &End, which: impl Fn(&SessionId, u64) -> bool) {
        for running in self.table().running.values() {
            if which(&running.session, running.serial) {
                running.end.send_if_modified(|end| {
                    let first = end.is_none();
                    end.get_or_insert_with(|| why.clone());
                    first
                });
            }
        }
    }

    pub fn end_all(&self, why: &End) {
        self.end(why, |_, _| true);
    }

    /// Ends a session for good. `true` when none of it runs, so that this can be said at once.
    fn end_session(&self, session: &SessionId, reason: &str) -> bool {
        {
            let mut table = self.table();
            let Table { up: Some(up), running, .. } = &mut *table else { return false };
            up.gate.end(session);
            if running.values().all(|running| running.session != *session) {
                return true;
            }
            if !up.awaited.contains(session) {
                up.awaited.push(session.clone());
            }
        }
        self.end(&End::Ended(reason.to_owned()), |running, _| running == session);
        false
    }

    fn close(&self, reason: Option<String>) {
        if let Some(up) = &mut self.table().up {
            up.gate.closed = reason;
        }
    }

    fn suspend(&self, reason: &str) {
        self.close(Some(reason.to_owned()));
        self.end_all(&End::Suspended(reason.to_owned()));
    }

    fn resume(&self) {
        self.close(None);
    }

    fn end_revoked(&self) {
        let trust = self.device.trust();
        let revoked = trust.revoked_serials();
        self.end(&End::Revoked, |_, serial| revoked.contains(&serial));
    }

    /// The sessions of which processes run, or are kept.
    fn sessions(&self) -> Vec<SessionId> {
        let mut sessions = Vec::new();
        for running in self.table().running.values() {
            if !sessions.contains(&running.session) {
                sessions.push(running.session.clone());
            }
        }
        sessions
    }

    pub async fn until_empty(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Connects, says hello, and serves until the tunnel ends. `joined` is called once the broker has welcomed
/// the device.
pub async fn serve(
    tunnel: &Arc<Tunnel>,
    keepalive: Duration,
    stopping: &watch::Receiver<bool>,
    joined: impl FnOnce(),
) -> Result<Over, TunnelError> {
    let mut stop = stopping.clone();
    let device = &tunnel.device;
    let (link, binding, welcome) = tokio::select! {
        joined = join(device) => joined?,
        _ = stop.wait_for(|stop| *stop) => return Ok(Over::Stopping),
    };
    note!("connected to {} as {} ({})", device.identity.broker_url, device.identity.device, link.tls_group);
    joined();
    carry(tunnel, link, binding, &welcome, keepalive, stopping).await
}

async fn join(device: &Device) -> Result<(Link, Binding, Welcome), TunnelError> {
    let mut link =
        link::connect(&device.endpoint, device.config.proxy.as_ref(), Conversation::Tunnel).await?;
    let challenge: SignedText = link.hear().await?;
    let accepted = {
        let trust = device.trust();
        check_challenge(&challenge, trust.broker_keys(), Conversation::Tunnel, &link.exporter, &link.nonce)?
    };
    device.learn_time(accepted.time())?;
    let hello = Hello {
        v: 1,
        device: device.identity.device.clone(),
        binding: accepted.binding().clone(),
        bundle_version: device.trust().version(),
        shim_version: env!("CARGO_PKG_VERSION").to_owned(),
        tls_group: link.tls_group.clone(),
    };
    let hello = SignedText::seal(&device.key, Purpose::Hello, &hello).map_err(TunnelError::Sign)?;
    link.say(&hello).await?;
    let welcome: Welcome = link.hear_answer().await?;
    if welcome.v != 1 {
        return Err(HelloError::Malformed(format!("a welcome of version {}", welcome.v)).into());
    }
    if let Some(bundle) = &welcome.bundle {
        let version = device.take_bundle(bundle)?;
        note!("trust bundle {version} is in force");
    }
    Ok((link, accepted.binding().clone(), welcome))
}

async fn carry(
    tunnel: &Arc<Tunnel>,
    link: Link,
    binding: Binding,
    welcome: &Welcome,
    keepalive: Duration,
    stopping: &watch::Receiver<bool>,
) -> Result<Over, TunnelError> {
    let mut connection = Connection::new(Socket::new(link.socket, keepalive, tunnel.count.subscribe()));

    let (reports, reported) = mpsc::channel(2 * MAX_STREAMS);
    // What was ended or counted on the connection before means nothing on this one.
    tunnel.table().up = Some(Up { binding, gate: Gate::default(), reports, awaited: Vec::new() });
    if !welcome.accepts_sessions {
        tunnel.suspend("by its operator");
    }
    tunnel.end_revoked();

    // Dropped with the connection; that tells the channels.
    let (life, lost) = watch::channel(());
    let mut control = JoinSet::new();
    let mut reported = Some(reported);
    let mut stop = stopping.clone();
    let outcome = loop {
        tokio::select! {
            inbound = connection.next() => match inbound {
                Some(Ok(stream)) => match reported.take() {
                    Some(reported) => {
                        control.spawn(control::serve(stream, Arc::clone(tunnel), reported));
                    }
                    None => {
                        tokio::spawn(channel::serve(stream, Arc::clone(tunnel), lost.clone()));
                    }
                },
                Some(Err(error)) if !connection.is_closed() => {
                    let half_open = is_half_open(&error);
                    break Err(TunnelError::Lost { why: error.to_string(), half_open });
                }
                Some(Err(_)) | None => {
                    break Err(TunnelError::Lost { why: "the broker closed it".to_owned(), half_open: false });
                }
            },
            Some(done) = control.join_next() => match done {
                Ok(Ok(retired)) => break Ok(retired),
                Ok(Err(error)) => {
                    break Err(TunnelError::Lost { why: error.to_string(), half_open: false });
                }
                Err(error) => {
                    break Err(TunnelError::Lost { why: error.to_string(), half_open: false });
                }
            },
            _ = stop.wait_for(|stop| *stop) => {
                tunnel.end_all(&End::Stopping);
                break Ok(Over::Stopping);
            }
        }
    };

    if outcome.is_ok() {
        // The last words still have to go out, so the connection is driven on.
        let drained = async {
            tokio::select! {
                () = tunnel.until_empty() => {}
                () = async { while connection.next().await.is_some_and(|inbound| inbound.is_ok()) {} } => {}
            }
            connection.close().await;
        };
        if timeout(FAREWELL, drained).await.is_err() {
            note!("the broker did not take the farewell");
        }
    }
    drop(connection);
    drop(life);
    if outcome.is_ok() || tunnel.device.config.resume_grace.is_zero() {
        tunnel.until_empty().await;
    }
    outcome
}

fn is_half_open(error: &yamux::ConnectionError) -> bool {
    match error {
        yamux::ConnectionError::Io(error) => is_half_open_io(error),
        _ => false,
    }
}

fn is_half_open_io(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<HalfOpen>)
}
