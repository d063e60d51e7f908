//! One tunnel: yamux over a WebSocket, its control stream, and the door through which channels open.

mod control;

use super::attention::Attention;
use super::channel::{self, Link};
use super::kept::{Keeper, Kept};
use super::server::Limits;
use super::wire::{self, Heard};
use crate::clock::Clock;
use crate::session::Sessions;
use crate::session::wire::DeviceChannel;
use axum::extract::ws::WebSocket;
use bytes::BytesMut;
use daypass_protocol::ids::{DeviceId, Login, SessionId};
use daypass_protocol::signed::SignatureError;
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::tunnel::control::ToDevice;
use daypass_protocol::tunnel::frame::{Frame, FrameError};
use daypass_protocol::tunnel::hello::Binding;
use daypass_protocol::tunnel::open::{Open, OpenKind, Received, Refused};
use daypass_protocol::tunnel::stream::{self, ReadError};
use daypass_protocol::tunnel::waker::{OwnWaker, alone};
use daypass_protocol::tunnel::{MAX_STREAMS, MAX_WINDOW};
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(super) type FrameReader = stream::FrameReader<yamux::Stream>;
pub(super) type FrameWriter = stream::FrameWriter<yamux::Stream>;

/// What a session asks a device to start.
#[derive(Clone, Debug)]
pub struct OpenAsk {
    pub session: SessionId,
    /// Number of the channel within its session, from 0.
    pub channel: u32,
    pub login: Login,
    /// The session certificate, one line.
    pub certificate: String,
    pub kind: OpenKind,
    pub env: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("the device is suspended")]
    Suspended,
    #[error("the device refused: {}", .0.message)]
    Refused(Refused),
    #[error("{} channels are open on this device; that is all it takes", MAX_STREAMS - 1)]
    TooMany,
    #[error("the device did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the open frame cannot be made: {0}")]
    Frame(#[from] FrameError),
    #[error("the open frame cannot be signed: {0}")]
    Signature(#[from] SignatureError),
    #[error("the device broke the protocol: {0}")]
    Protocol(String),
}

/// The tunnel is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is not connected any more")]
pub struct Gone;

/// A device's connection.
pub struct Tunnel {
    device: DeviceId,
    tls_group: String,
    peer: SocketAddr,
    binding: Binding,
    limits: Limits,
    over: CancellationToken,
    /// The control stream is there, which has to be the first: channels wait for it.
    controlled: CancellationToken,
    why: Mutex<Option<String>>,
    accepts_sessions: AtomicBool,
    /// The counter of the last `open`. Whoever holds the lock writes the next one.
    counter: tokio::sync::Mutex<u64>,
    streams: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    channels: Arc<Semaphore>,
    /// Boxed, because a channel has room for 32 from the beginning, and there are thousands of tunnels.
    control: mpsc::Sender<Box<ToDevice>>,
    pings: mpsc::Sender<()>,
    heard: Arc<Heard>,
    /// How many channels are open or being opened.
    attended: watch::Sender<usize>,
    /// False while the device owes an answer.
    answering: watch::Sender<bool>,
    bundle_version: AtomicU64,
    sessions_gone: OnceLock<broadcast::Sender<SessionId>>,
    sessions: Sessions,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({} from {})", self.device, self.peer)
    }
}

/// What the hello has established.
#[derive(Debug)]
pub(super) struct Established {
    pub device: DeviceId,
    pub tls_group: String,
    pub peer: SocketAddr,
    pub binding: Binding,
    pub accepts_sessions: bool,
    pub bundle_version: u64,
}

impl Tunnel {
    /// Takes over a socket whose hello is done. The tunnel lives until the returned future, which the
    /// caller polls, ends; it gives the reason.
    pub(super) fn start(
        socket: WebSocket,
        hello: Established,
        limits: Limits,
        clock: Clock,
        sessions: Sessions,
    ) -> (Arc<Self>, impl Future<Output = String> + Send) {
        let parts = wire::split(socket);
        let (streams, wanted) = mpsc::channel(MAX_STREAMS);
        let (control, to_device) = mpsc::channel(32);
        let tunnel = Arc::new(Self {
            device: hello.device,
            tls_group: hello.tls_group,
            peer: hello.peer,
            binding: hello.binding,
            limits,
            over: CancellationToken::new(),
            controlled: CancellationToken::new(),
            why: Mutex::new(None),
            accepts_sessions: AtomicBool::new(hello.accepts_sessions),
            counter: tokio::sync::Mutex::new(0),
            streams,
            channels: Arc::new(Semaphore::new(MAX_STREAMS - 1)),
            control,
            pings: parts.pings,
            heard: parts.heard,
            attended: watch::Sender::new(0),
            answering: watch::Sender::new(true),
            bundle_version: AtomicU64::new(hello.bundle_version),
            sessions_gone: OnceLock::new(),
            sessions,
        });
        let (io, reader, writer) = (parts.io, parts.reader, parts.writer);
        let own = tunnel.clone();
        let run = async move {
            let over = own.over.clone();
            // Boxed, or the room for it is there again in everything around it.
            let ending = {
                let own = own.clone();
                Box::pin(async move {
                    tokio::select! {
                        () = own.over.cancelled() => "closed by the broker".to_owned(),
                        why = drive(io, wanted) => why,
                        why = alone(own.run_control(to_device, clock)) => why,
                        why = alone(own.watch_silence()) => why,
                    }
                })
            };
            let writing = async {
                let written = alone(writer.run(&over)).await;
                // A socket that cannot be written to ends the rest, too.
                over.cancel();
                written
            };
            let ending = async {
                let why = ending.await;
                over.cancel();
                why
            };
            // Its end is for yamux to notice, after the last bytes.
            let reading = alone(over.run_until_cancelled(reader.run()));
            // In the order in which each gives the next something to do.
            let (_, why, written) = tokio::join!(biased; reading, ending, writing);
            let mut said = own.why.lock().unwrap_or_else(PoisonError::into_inner);
            match (said.take(), written) {
                (Some(why), _) => why,
                (None, Err(error)) => error.to_string(),
                (None, Ok(())) => why,
            }
        };
        (tunnel, run)
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The TLS key exchange of the connection, as the broker's end saw it.
    pub fn tls_group(&self) -> &str {
        &self.tls_group
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn is_closed(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits until the tunnel is over.
    pub async fn closed(&self) {
        self.over.cancelled().await;
    }

    /// Whether the device answers, as far as it was asked.
    pub fn is_answering(&self) -> bool {
        *self.answering.borrow()
    }

    /// Waits until the device does, or does not, answer. It is asked while channels are open, or being
    /// opened.
    pub async fn answering(&self, answering: bool) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.answering.subscribe().wait_for(|now| *now == answering).await;
    }

    /// Ends the tunnel, and everything on it.
    pub fn close(&self, why: &str) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.over.cancel();
    }

    /// Sessions of which the device says that no process is left.
    pub fn sessions_gone(&self) -> broadcast::Receiver<SessionId> {
        self.sessions_gone.get_or_init(|| broadcast::channel(MAX_STREAMS).0).subscribe()
    }

    pub(super) fn set_accepts_sessions(&self, accepts: bool) {
        self.accepts_sessions.store(accepts, Ordering::SeqCst);
    }

    /// Notes that a bundle is about to be sent; false if one as new was sent before.
    pub(super) fn is_news(&self, version: u64) -> bool {
        self.bundle_version.fetch_max(version, Ordering::SeqCst) < version
    }

    /// Puts a message on the control stream.
    pub async fn send(&self, message: ToDevice) -> Result<(), Gone> {
        tokio::select! {
            () = self.over.cancelled() => Err(Gone),
            sent = self.control.send(Box::new(message)) => sent.map_err(|_| Gone),
        }
    }

    /// Whether the device says anything within `deadline` of being pinged: the pong may stand behind data on a
    /// slow way, and data is as good.
    pub(super) async fn answers(&self, deadline: Duration) -> bool {
        let mut heard = self.heard.subscribe();
        let asked = async {
            self.pings.send(()).await.map_err(|_| Gone)?;
            // What came before the question is no answer to it.
            heard.mark_unchanged();
            heard.changed().await.map_err(|_| Gone)
        };
        tokio::select! {
            () = self.over.cancelled() => false,
            answered = tokio::time::timeout(deadline, asked) => matches!(answered, Ok(Ok(()))),
        }
    }

    /// Opens a channel on the device: signs the `open` frame with the session certificate's key, and
    /// waits for the device's answer. With a keeper the channel outlives this tunnel.
    pub async fn open(
        &self,
        ask: OpenAsk,
        key: &PrivateKey,
        keeper: Option<Keeper>,
    ) -> Result<DeviceChannel, OpenError> {
        let (link, answer) = self.ask(&ask, None, key).await?;
        if answer != Frame::Opened {
            return Err(OpenError::Protocol("its first frame is neither opened nor refused".to_owned()));
        }
        let device = self.device.clone();
        let opened_on = self.binding.clone();
        let kept = keeper.map(|keeper| Kept { keeper, device: device.clone(), ask, opened_on });
        Ok(channel::start(link, device, kept))
    }

    /// Goes on with a channel that was open on an earlier tunnel: the stream, and how much input the device
    /// has.
    pub(super) async fn resume(
        &self,
        ask: &OpenAsk,
        opened_on: &Binding,
        received: Received,
        key: &PrivateKey,
    ) -> Result<(Link, u64), OpenError> {
        match self.ask(ask, Some(received), key).await? {
            (link, Frame::Resumed { received, opened_on: said }) if said == *opened_on => {
                Ok((link, received))
            }
            (_, Frame::Resumed { .. }) => Err(OpenError::Protocol(
                "it does not know the tunnel that the channel was opened on".to_owned(),
            )),
            _ => Err(OpenError::Protocol("its first frame is neither resumed nor refused".to_owned())),
        }
    }

    async fn ask(
        &self,
        ask: &OpenAsk,
        resume: Option<Received>,
        key: &PrivateKey,
    ) -> Result<(Link, Frame), OpenError> {
        if self.is_closed() {
            return Err(Gone.into());
        }
        if !self.accepts_sessions.load(Ordering::SeqCst) {
            return Err(OpenError::Suspended);
        }
        let room = self.channels.clone().try_acquire_owned().map_err(|_| OpenError::TooMany)?;
        let room = Attention::pay(&self.attended, room);
        let deadline = self.limits.open;
        let answered = async {
            self.controlled.cancelled().await;
            let (mut reader, writer) = self.send_open(ask, resume, key).await?;
            match reader.next().await {
                Ok(Some(Frame::Refused(refused))) => Err(OpenError::Refused(refused)),
                Ok(Some(frame)) => Ok((reader, writer, frame)),
                Ok(None) => Err(OpenError::Protocol("it closed the channel without an answer".to_owned())),
                Err(ReadError::Frame(error)) => Err(OpenError::Protocol(error.to_string())),
                Err(ReadError::Io(_)) => Err(Gone.into()),
            }
        };
        let (reader, writer, answer) = tokio::select! {
            () = self.over.cancelled() => return Err(Gone.into()),
            answered = tokio::time::timeout(deadline, answered) => {
                answered.map_err(|_| OpenError::TimedOut(deadline))??
            }
        };
        Ok((Link { reader, writer, room, lost: self.over.child_token(), limits: self.limits }, answer))
    }

    async fn send_open(
        &self,
        ask: &OpenAsk,
        resume: Option<Received>,
        key: &PrivateKey,
    ) -> Result<(FrameReader, FrameWriter), OpenError> {
        // Held from the counter to the last byte: yamux sends the streams' first frames in the order in
        // which they were written, and the device refuses a counter that does not grow.
        let mut counter = self.counter.lock().await;
        let ask = ask.clone();
        let open = Open {
            v: 1,
            binding: self.binding.clone(),
            counter: *counter + 1,
            session: ask.session,
            channel: ask.channel,
            login: ask.login,
            certificate: ask.certificate,
            kind: ask.kind,
            env: ask.env,
            resume,
        };
        let mut frame = BytesMut::new();
        Frame::Open(open.seal(key)?).encode(&mut frame)?;
        *counter += 1;
        let (reader, mut writer) = stream::split(self.stream().await?);
        writer.begin(frame.freeze());
        writer.ready().await.map_err(|_| Gone)?;
        Ok((reader, writer))
    }

    async fn stream(&self) -> Result<yamux::Stream, Gone> {
        let (reply, stream) = oneshot::channel();
        self.streams.send(reply).await.map_err(|_| Gone)?;
        stream.await.map_err(|_| Gone)
    }

    /// Asks a silent connection whether it lives, and waits for anything at all. While somebody waits for the
    /// device it is asked soon, and said to be silent before it is given up.
    async fn watch_silence(&self) -> String {
        let (mut heard, mut attended) = (self.heard.subscribe(), self.attended.subscribe());
        loop {
            let last = self.heard.last();
            let waited_for = *attended.borrow_and_update() > 0;
            let (silence, pong) = if waited_for {
                (self.limits.attended_silence, self.limits.attended_pong)
            } else {
                (self.limits.silence, self.limits.pong)
            };
            tokio::select! {
                () = tokio::time::sleep_until(last + silence) => {}
                // Another measure may count now.
                _ = attended.changed() => continue,
            }
            if self.heard.last() != last {
                continue;
            }
            heard.mark_unchanged();
            let asked = async {
                let _ = self.pings.send(()).await;
                heard.changed().await
            };
            let mut given = silence + pong;
            let mut answered = matches!(tokio::time::timeout(pong, asked).await, Ok(Ok(())));
            if !answered && waited_for {
                tracing::warn!(device = %self.device, "a device does not answer while somebody waits for it");
                self.answering.send_replace(false);
                given += self.limits.forbearance;
                let late = tokio::time::timeout(self.limits.forbearance, heard.changed()).await;
                answered = matches!(late, Ok(Ok(())));
            }
            if !answered {
                return format!("nothing was heard for {given:?}, and no answer to a ping");
            }
            self.answering.send_if_modified(|answering| !std::mem::replace(answering, true));
        }
    }
}

/// Polls yamux for as long as it lives; returns why it ended.
async fn drive(io: wire::Io, mut wanted: mpsc::Receiver<oneshot::Sender<yamux::Stream>>) -> String {
    let mut config = yamux::Config::default();
    // A stream that was dropped is counted until yamux has noticed: its own limit has slack, ours is the
    // number of permits. The window's limit allows yamux's first 256 KiB to each.
    config.set_max_num_streams(MAX_WINDOW / yamux::DEFAULT_CREDIT as usize);
    config.set_max_connection_receive_window(Some(MAX_WINDOW));
    // An `open` frame goes out in one piece, and so does a full `data` frame.
    config.set_split_send_size(daypass_protocol::tunnel::frame::MAX_FRAME + 4);
    let mut connection = yamux::Connection::new(io, config, yamux::Mode::Client);
    let own = OwnWaker::new();
    let mut drive = |cx: &mut Context<'_>| {
        while let Poll::Ready(Some(reply)) = wanted.poll_recv(cx) {
            match connection.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    // An asker that has gone leaves its stream to be dropped.
                    let _ = reply.send(stream);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Too many that the device has not acknowledged: the asker learns by the dropped reply.
                Poll::Pending => drop(reply),
            }
        }
        connection.poll_next_inbound(cx)
    };
    match poll_fn(|cx| own.poll(cx, &mut drive)).await {
        Some(Ok(_)) => "the device broke the protocol: it opened a stream".to_owned(),
        Some(Err(error)) => error.to_string(),
        None => "the device closed the connection".to_owned(),
    }
}
