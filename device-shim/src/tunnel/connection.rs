//! yamux over the WebSocket.
//!
//! The socket is read beside yamux and not by it, so that the pings and pongs of an idle connection do not wake
//! it: each time it would measure the round trip, with messages of its own.

use super::socket::Socket;
use bytes::Bytes;
use daypass_protocol::tunnel::messages::Messages;
use daypass_protocol::tunnel::waker::OwnWaker;
use daypass_protocol::tunnel::{MAX_DATA, MAX_STREAMS};
use futures_util::{Sink, SinkExt, Stream, StreamExt as _};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake as _, Waker};
use tokio::io::{AsyncRead, AsyncWrite};

/// Receive window of one stream; yamux's own, which it cannot go below.
const STREAM_WINDOW: usize = 256 * 1024;

type Io<S> = Messages<Received, Outgoing<S>>;

/// The tunnel's connection.
pub struct Connection<S> {
    socket: Arc<Mutex<Socket<S>>>,
    between: Between,
    yamux: yamux::Connection<Io<S>>,
    own: Arc<OwnWaker>,
}

/// What yamux's end and the socket's have between them.
#[derive(Clone, Default)]
struct Between(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    arrived: Arrived,
    /// yamux, waiting for it.
    reader: Option<Waker>,
    /// yamux, waiting until the socket can be written to.
    writer: Option<Waker>,
    /// The task that polls both.
    task: Option<Waker>,
}

/// What was read last, until yamux takes it.
#[derive(Default)]
enum Arrived {
    #[default]
    Nothing,
    Item(io::Result<Bytes>),
    End,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Between {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0)
    }

    fn is_empty(&self) -> bool {
        matches!(self.lock().arrived, Arrived::Nothing)
    }

    fn put(&self, item: Option<io::Result<Bytes>>) {
        let mut shared = self.lock();
        shared.arrived = item.map_or(Arrived::End, Arrived::Item);
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
    }

    /// The task was woken: perhaps because the socket can be written to.
    fn polled(&self, task: &Waker) {
        let mut shared = self.lock();
        shared.task = Some(task.clone());
        if let Some(writer) = shared.writer.take() {
            writer.wake();
        }
    }
}

struct Received(Between);

impl Stream for Received {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = self.0.lock();
        match std::mem::take(&mut shared.arrived) {
            Arrived::Item(item) => Poll::Ready(Some(item)),
            Arrived::End => {
                shared.arrived = Arrived::End;
                Poll::Ready(None)
            }
            Arrived::Nothing => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The socket's sink. It remembers the last waker it saw and wakes that for whatever comes in, too: so it sees
/// the task's.
struct Outgoing<S> {
    socket: Arc<Mutex<Socket<S>>>,
    between: Between,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outgoing<S> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Socket<S>, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let task = self.between.lock().task.clone();
        let mut socket = lock(&self.socket);
        let polled = match &task {
            Some(task) => poll(&mut socket, &mut Context::from_waker(task)),
            None => poll(&mut socket, cx),
        };
        if polled.is_pending() {
            self.between.lock().writer = Some(cx.waker().clone());
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Bytes> for Outgoing<S> {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, SinkExt::poll_ready_unpin)
    }

    fn start_send(self: Pin<&mut Self>, bytes: Bytes) -> io::Result<()> {
        lock(&self.socket).start_send_unpin(bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, SinkExt::poll_flush_unpin)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, SinkExt::poll_close_unpin)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(socket: Socket<S>) -> Self {
        let socket = Arc::new(Mutex::new(socket));
        let between = Between::default();
        let io = Messages::new(
            Received(between.clone()),
            Outgoing { socket: socket.clone(), between: between.clone() },
        );
        let yamux = yamux::Connection::new(io, config(), yamux::Mode::Server);
        Self { socket, between, yamux, own: OwnWaker::new() }
    }

    /// The next stream that the broker opens. Has to be waited for all the time: it drives every stream.
    pub async fn next(&mut self) -> Option<yamux::Result<yamux::Stream>> {
        self.driven(yamux::Connection::poll_next_inbound).await
    }

    /// Whether the broker has closed it: what fails after that fails because of it.
    pub fn is_closed(&self) -> bool {
        matches!(self.between.lock().arrived, Arrived::End)
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        // Whoever does not hear it will notice.
        let _ = self.driven(yamux::Connection::poll_close).await;
    }

    /// Reads from the socket when there is room for what comes, and polls yamux when it was woken.
    async fn driven<T>(
        &mut self,
        mut poll: impl FnMut(&mut yamux::Connection<Io<S>>, &mut Context<'_>) -> Poll<T>,
    ) -> T {
        // It may have been asked for something else the last time.
        self.own.wake_by_ref();
        poll_fn(|cx| {
            self.between.polled(cx.waker());
            loop {
                let mut nothing = false;
                if self.between.is_empty() {
                    let polled = lock(&self.socket).poll_next_unpin(cx);
                    match polled {
                        Poll::Ready(item) => self.between.put(item),
                        Poll::Pending => nothing = true,
                    }
                }
                if let Poll::Ready(ready) = self.own.poll(cx, |cx| poll(&mut self.yamux, cx)) {
                    return Poll::Ready(ready);
                }
                if nothing || !self.between.is_empty() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    // The count first: the window must be enough for it, and is checked against it.
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * STREAM_WINDOW));
    config.set_split_send_size(MAX_DATA + 64);
    config
}
