//! What the tasks of one SSH connection share, and how it ends.

use super::door::{Client, Door, EndNotice, Refusal, Refused, RefusedKind, SessionDoor};
use super::front::Inside;
use super::gate::NotAllowed;
use super::pipe::PipeIn;
use super::transport::Control;
use crate::session::wire::{FromEngineer, InputQueue, Relief};
use bytes::{Bytes, BytesMut};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::open::{OpenKind, Pty};
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf, Disconnect};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, warn};

/// Bytes of input in one message; what a client sends in one packet at most, if it keeps to ours.
const PIECE: usize = 32 * 1024;
/// A packet this small in a queue this full came through a two-byte window.
const TRICKLE: usize = 64;
/// Messages that may wait before small ones are put together.
const MESSAGES: usize = 256;

/// One channel, from its opening to its end.
pub enum Entry {
    /// The way into an inner connection; `None` once the client has said that it ends.
    Jump(Option<PipeIn>),
    Session(SessionEntry),
}

pub struct SessionEntry {
    pub input: InputQueue,
    /// Two-byte packets of a stalled upload, kept in one piece until the queue has room.
    tail: BytesMut,
    pub waiting: Option<Waiting>,
    /// Ends the channel's task.
    pub gone: CancellationToken,
}

/// A session channel on which nothing was started yet.
pub struct Waiting {
    pub write: ChannelWriteHalf<Msg>,
    pub engineer: crate::session::wire::Input,
    pub pty: Option<Pty>,
    pub env: Vec<(String, String)>,
}

impl SessionEntry {
    pub fn new(input: InputQueue, waiting: Waiting, gone: CancellationToken) -> Self {
        Self { input, tail: BytesMut::new(), waiting: Some(waiting), gone }
    }

    /// False when nobody takes the channel's input any more.
    pub fn push(&mut self, message: FromEngineer) -> bool {
        self.flush_tail() && self.input.push(message)
    }

    /// A channel that has begun: its input flows from the first byte.
    pub fn begun(input: InputQueue, gone: CancellationToken) -> Self {
        Self { input, tail: BytesMut::new(), waiting: None, gone }
    }

    fn flush_tail(&mut self) -> bool {
        let tail = self.tail.split().freeze();
        tail.is_empty() || tail.chunks(PIECE).all(|part| self.input.push(data(part)))
    }
}

fn data(bytes: &[u8]) -> FromEngineer {
    FromEngineer::Data(Bytes::copy_from_slice(bytes))
}

impl Entry {
    fn queued(&self) -> usize {
        match self {
            Self::Jump(pipe) => pipe.as_ref().map_or(0, PipeIn::queued),
            Self::Session(session) => session.input.queued() + session.tail.len(),
        }
    }
}

/// The client went past the window it was given.
#[derive(Debug)]
pub struct WindowIgnored;

pub struct Live<D: Door> {
    pub inside: Arc<Inside<D>>,
    pub source: SocketAddr,
    pub control: Control,
    pub outer_kex: Option<String>,
    pub authenticated: CancellationToken,
    /// The connection is over.
    pub gone: CancellationToken,
    pub handle: OnceLock<Handle>,
    pub ended: watch::Sender<Option<EndNotice>>,
    channels: Mutex<HashMap<ChannelId, Entry>>,
    tasks: Mutex<JoinSet<()>>,
    session: OnceCell<Arc<dyn SessionDoor>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Door> Live<D> {
    pub fn new(
        inside: Arc<Inside<D>>,
        source: SocketAddr,
        control: Control,
        outer_kex: Option<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inside,
            source,
            control,
            outer_kex,
            authenticated: CancellationToken::new(),
            gone: CancellationToken::new(),
            handle: OnceLock::new(),
            ended: watch::Sender::new(None),
            channels: Mutex::default(),
            tasks: Mutex::default(),
            session: OnceCell::new(),
        })
    }

    pub fn channels(&self) -> MutexGuard<'_, HashMap<ChannelId, Entry>> {
        lock(&self.channels)
    }

    /// Runs a task that ends with the connection at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task.in_current_span());
    }

    /// What the window's next target may be: what is left of the bound on everything that this
    /// connection has queued. Never 0 or 1, which nothing would reopen.
    pub fn next_window(&self) -> u32 {
        let window = self.inside.limits.window;
        let left = |queued: usize| window.saturating_sub(u32::try_from(queued).unwrap_or(u32::MAX));
        let queued = || self.channels().values().map(Entry::queued).sum::<usize>();
        let now = left(queued());
        if now >= window / 8 {
            return now;
        }
        self.control.pause();
        // Its relief may have come before the rest.
        if left(queued()) > window / 2 {
            self.control.resume();
        }
        2
    }

    /// Ends a rest once half the window is free again: less would let what is queued run out before the client
    /// sends more.
    pub fn relief(&self) -> Relief {
        let control = self.control.clone();
        Relief::new(self.inside.limits.window as usize / 2, move || control.resume())
    }

    /// Takes what the client sent on a channel; never waits.
    pub fn take(self: &Arc<Self>, id: ChannelId, bytes: &[u8]) -> Result<(), WindowIgnored> {
        let window = self.inside.limits.window as usize;
        let mut channels = self.channels();
        let Some(entry) = channels.get_mut(&id) else { return Ok(()) };
        // An honest client is below twice the window, and trickles from there.
        if entry.queued() + bytes.len() > 4 * window {
            return Err(WindowIgnored);
        }
        match entry {
            Entry::Jump(pipe) => {
                // What comes after the end of the inner connection has nowhere to go.
                if let Some(pipe) = pipe
                    && !pipe.push(Bytes::copy_from_slice(bytes))
                {
                    debug!("the inner connection has ended");
                }
            }
            Entry::Session(session) => {
                let input = &session.input;
                let piles_up = input.queued() > window / 2 || input.messages() > MESSAGES;
                if bytes.len() <= TRICKLE && piles_up {
                    if session.tail.is_empty() {
                        let (live, input) = (self.clone(), session.input.clone());
                        let gone = session.gone.clone();
                        self.spawn(async move { live.flush_when_drained(id, input, gone).await });
                    }
                    session.tail.extend_from_slice(bytes);
                } else if !bytes.chunks(PIECE).all(|part| session.push(data(part))) {
                    channels.remove(&id);
                }
            }
        }
        Ok(())
    }

    async fn flush_when_drained(&self, id: ChannelId, input: InputQueue, gone: CancellationToken) {
        let low = self.inside.limits.window as usize / 2;
        while input.queued() > low || input.messages() > MESSAGES / 2 {
            tokio::select! {
                () = input.drained() => {}
                () = gone.cancelled() => return,
            }
        }
        if let Some(Entry::Session(session)) = self.channels().get_mut(&id) {
            session.flush_tail();
        }
    }

    /// The session of this connection, begun at the first call.
    pub async fn session(
        self: &Arc<Self>,
        person: &D::Person,
        device: &DeviceId,
        login: &Login,
        first: &OpenKind,
        client: Client,
    ) -> Result<Arc<dyn SessionDoor>, Refusal> {
        let begin = async {
            let begin = self.inside.door.begin(person, device, login, first, client);
            let session = timeout(self.inside.limits.step, begin)
                .await
                .map_err(|_| Refusal::new("the session could not begin in time").hint("try again"))??;
            let live = self.clone();
            let watched = session.clone();
            self.spawn(async move {
                tokio::select! {
                    notice = watched.ended() => live.end(notice).await,
                    () = live.gone.cancelled() => {}
                }
            });
            Ok(session)
        };
        self.session.get_or_try_init(|| begin).await.cloned()
    }

    /// The session was ended by the broker: every channel says so, then the connection closes.
    async fn end(self: Arc<Self>, notice: EndNotice) {
        let line = notice.message.clone();
        self.ended.send_replace(Some(notice));
        let said = async {
            while !self.channels().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(self.inside.limits.linger, said).await;
        self.disconnect(&line);
    }

    /// Tells the client why and closes; cuts if that takes too long.
    pub fn disconnect(self: &Arc<Self>, line: &str) {
        let line = format!("daypass: {}", made_visible(line, 512));
        let live = self.clone();
        self.spawn(async move {
            let linger = live.inside.limits.linger;
            if let Some(handle) = live.handle.get() {
                let said = handle.disconnect(Disconnect::ByApplication, line, String::new());
                if !matches!(timeout(linger, said).await, Ok(Ok(()))) {
                    debug!("the client was not told why");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                () = live.gone.cancelled() => {}
            }
            live.control.cut();
        });
    }

    /// Records a refusal of the gateway's own.
    pub fn refused(self: &Arc<Self>, person: Option<D::Person>, device: Option<DeviceId>, why: &NotAllowed) {
        let kind: RefusedKind = why.kind;
        metrics::counter!("daypass_gateway_refused_total", "kind" => kind.as_str()).increment(1);
        debug!(kind = kind.as_str(), "refused: {}", why.refusal);
        let refused = Refused { kind, message: why.refusal.to_string(), source: self.source, device };
        let live = self.clone();
        self.spawn(async move {
            let record = live.inside.door.refused(person.as_ref(), refused);
            if timeout(live.inside.limits.step, record).await.is_err() {
                warn!("a refusal was not recorded in time");
            }
        });
    }

    /// Ends everything of a connection whose stream has ended, and tells the session.
    pub async fn finish(&self) {
        self.gone.cancel();
        self.control.cut();
        self.channels().clear();
        let told = self.session.get().cloned();
        if let Some(session) = &told {
            self.closed(session).await;
        }
        // Steps towards the door are let finish: a session that has just begun must be told too.
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(self.inside.limits.step + self.inside.limits.linger, all).await.is_err() {
            warn!("tasks of a closed connection were still running");
        }
        tasks.abort_all();
        if let (None, Some(session)) = (told, self.session.get()) {
            self.closed(session).await;
        }
    }

    async fn closed(&self, session: &Arc<dyn SessionDoor>) {
        if timeout(self.inside.limits.step, session.closed()).await.is_err() {
            warn!("a session did not take notice of its end in time");
        }
    }

    /// For when the task that would call [`Live::finish`] is itself dropped.
    pub fn abort(&self) {
        self.gone.cancel();
        self.control.cut();
        self.channels().clear();
        lock(&self.tasks).abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::door::{HostIdentity, NotAuthenticated};
    use crate::gateway::gate::Gate;
    use crate::gateway::limits::Limits;
    use crate::gateway::transport::Transport;
    use crate::session::wire::{Input, input};
    use async_trait::async_trait;
    use daypass_protocol::ssh_key::Certificate;
    use daypass_protocol::ssh_key::encoding::Decode as _;

    /// Behind which there is nothing.
    struct Wall;

    #[async_trait]
    impl Door for Wall {
        type Person = ();
        async fn authenticate(&self, _: &Certificate, _: SocketAddr) -> Result<(), NotAuthenticated> {
            Err(NotAuthenticated::Stranger)
        }
        fn same_person(&self, (): &(), (): &()) -> bool {
            false
        }
        async fn host_identity(&self, _: &DeviceId) -> Result<HostIdentity, Refusal> {
            Err(Refusal::new("nothing here"))
        }
        async fn begin(
            &self,
            (): &(),
            _: &DeviceId,
            _: &Login,
            _: &OpenKind,
            _: Client,
        ) -> Result<Arc<dyn SessionDoor>, Refusal> {
            Err(Refusal::new("nothing here"))
        }
        async fn refused(&self, _: Option<&()>, _: Refused) {}
    }

    const WINDOW: u32 = 65536;

    /// A connection with one running channel, and the session's end of that channel's input.
    fn live() -> (Arc<Live<Wall>>, ChannelId, Input) {
        let limits = Limits { window: WINDOW, ..Limits::default() };
        let (_, control) = Transport::new(tokio::io::empty(), limits.egress, limits.egress_hard);
        let gate = Gate { suffix: "daypass".to_owned(), command: limits.command };
        let stopping = CancellationToken::new();
        let inside = Arc::new(Inside { door: Arc::new(Wall), gate, limits, stopping });
        let live = Live::new(inside, ([127, 0, 0, 1], 1).into(), control, None);
        let (queue, engineer) = input(live.relief());
        let gone = live.gone.child_token();
        let entry = SessionEntry { input: queue, tail: BytesMut::new(), waiting: None, gone };
        let id = ChannelId::decode(&mut &[0, 0, 0, 3][..]).unwrap();
        live.channels().insert(id, Entry::Session(entry));
        (live, id, engineer)
    }

    #[tokio::test]
    async fn the_window_is_what_the_queue_leaves_and_never_shuts() {
        let (live, id, mut engineer) = live();
        assert_eq!(live.next_window(), WINDOW);
        live.take(id, &vec![0; 20_000]).unwrap();
        assert_eq!(live.next_window(), WINDOW - 20_000);
        live.take(id, &vec![0; 40_000]).unwrap();
        assert_eq!(live.next_window(), 2);
        engineer.recv().await.unwrap();
        engineer.recv().await.unwrap();
        assert!(live.next_window() > WINDOW / 2);
    }

    #[tokio::test]
    async fn reading_rests_while_the_queue_is_full_and_no_longer_than_until_half_of_it_is_taken() {
        let (live, id, mut engineer) = live();
        live.take(id, &vec![0; 30_000]).unwrap();
        live.take(id, &vec![0; 32_000]).unwrap();
        assert!(!live.control.rests());
        assert_eq!(live.next_window(), 2);
        assert!(live.control.rests());
        engineer.recv().await.unwrap();
        assert!(!live.control.rests(), "it rests while the queue runs out");
    }

    #[tokio::test]
    async fn a_client_that_ignores_its_window_is_given_up() {
        let (live, id, _engineer) = live();
        let mut taken = 0;
        while live.take(id, &vec![0; PIECE]).is_ok() {
            taken += PIECE;
            assert!(taken <= 4 * WINDOW as usize, "memory without a bound");
        }
        assert_eq!(taken, 4 * WINDOW as usize);
    }

    #[tokio::test]
    async fn a_trickle_into_a_full_queue_waits_in_one_piece_and_in_order() {
        let (live, id, mut engineer) = live();
        live.take(id, &vec![1; 40_000]).unwrap();
        for n in 0..100 {
            live.take(id, &[n, n]).unwrap();
        }
        let (mut whole, mut pieces) = (Vec::new(), 0);
        while whole.len() < 40_200 {
            let Some(FromEngineer::Data(bytes)) = engineer.recv().await else { panic!("no data") };
            whole.extend_from_slice(&bytes);
            pieces += 1;
        }
        assert_eq!(pieces, 3);
        assert!(whole[40_000..].chunks(2).enumerate().all(|(n, pair)| pair == [u8::try_from(n).unwrap(); 2]));
    }
}
