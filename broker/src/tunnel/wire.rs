//! A WebSocket as the byte stream that yamux wants, with pings of our own beside it.
//!
//! One future writes to the socket: yamux's bytes and our pings meet there, and what has piled up goes out
//! in one flush. Another reads from it. yamux's own ping has no deadline; the WebSocket's, here, has.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{Bytes, BytesMut};
use futures_channel::mpsc;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

/// Messages of at most [`BATCH`] bytes that may wait for the socket.
const QUEUE: usize = 4;
/// Bytes gathered into one WebSocket message.
const BATCH: usize = 64 * 1024;

/// What was heard from the device, and when.
#[derive(Debug)]
pub(super) struct Heard {
    at: watch::Sender<Instant>,
}

impl Heard {
    fn new() -> Self {
        Self { at: watch::Sender::new(Instant::now()) }
    }

    pub(super) fn last(&self) -> Instant {
        *self.at.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Instant> {
        self.at.subscribe()
    }
}

/// The writing half: bytes of yamux, and pings.
#[derive(Debug)]
pub(super) struct Writer {
    sink: SplitSink<WebSocket, Message>,
    bytes: mpsc::Receiver<Bytes>,
    pings: tokio::sync::mpsc::Receiver<()>,
}

/// The reading half: takes pings and pongs for itself, and passes bytes on. Polled beside yamux and not by it,
/// so that what keeps a connection alive does not wake it.
#[derive(Debug)]
pub(super) struct Reader {
    stream: SplitStream<WebSocket>,
    bytes: mpsc::Sender<io::Result<Bytes>>,
    heard: Arc<Heard>,
}

/// The parts of a socket whose hello is over.
pub(super) struct Parts<T> {
    pub io: T,
    pub reader: Reader,
    pub writer: Writer,
    pub pings: tokio::sync::mpsc::Sender<()>,
    pub heard: Arc<Heard>,
}

pub(super) fn split(socket: WebSocket) -> Parts<impl AsyncRead + AsyncWrite + Send> {
    let (sink, stream) = socket.split();
    let (written, bytes) = mpsc::channel(QUEUE);
    let (received, incoming) = mpsc::channel(0);
    let (pings_tx, pings) = tokio::sync::mpsc::channel(2);
    let heard = Arc::new(Heard::new());
    let io =
        tokio::io::join(StreamReader::new(incoming), Gathered { bytes: BytesMut::new(), queue: written });
    let reader = Reader { stream, bytes: received, heard: heard.clone() };
    Parts { io, reader, writer: Writer { sink, bytes, pings }, pings: pings_tx, heard }
}

impl Reader {
    /// Reads until the connection ends or nobody wants its bytes any more.
    pub(super) async fn run(mut self) {
        while let Some(message) = self.stream.next().await {
            if message.is_ok() {
                self.heard.at.send_replace(Instant::now());
            }
            let bytes = match message {
                Ok(Message::Binary(bytes)) => Ok(bytes),
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(Message::Close(_)) => return,
                Ok(Message::Text(_)) => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "a text message after the hello"))
                }
                Err(error) => Err(io::Error::other(error)),
            };
            if self.bytes.feed(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Gathers what yamux writes, a header of twelve bytes and then its payload, into one message for both.
/// Between messages it holds nothing: most tunnels are idle, and there are tens of thousands of them.
struct Gathered {
    bytes: BytesMut,
    queue: mpsc::Sender<Bytes>,
}

impl Gathered {
    /// Puts what was gathered into the queue, once there is room.
    fn poll_pass_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gone = |_: mpsc::SendError| io::Error::from(io::ErrorKind::BrokenPipe);
        if !self.bytes.is_empty() {
            ready!(self.queue.poll_ready(cx)).map_err(gone)?;
            self.queue.start_send(std::mem::take(&mut self.bytes).freeze()).map_err(gone)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.bytes.len() + bytes.len() > BATCH {
            ready!(self.poll_pass_on(cx))?;
        }
        let taken = bytes.get(..BATCH).unwrap_or(bytes);
        self.bytes.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_pass_on(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass_on(cx))?;
        self.queue.close_channel();
        Poll::Ready(Ok(()))
    }
}

impl Writer {
    /// Writes until the tunnel is over, then says goodbye.
    pub(super) async fn run(mut self, over: &CancellationToken) -> Result<(), axum::Error> {
        let written = tokio::select! {
            () = over.cancelled() => Ok(()),
            written = self.write() => written,
        };
        if written.is_ok() {
            // Best effort: the socket may be the reason why it is over.
            let goodbye = CloseFrame { code: close_code::AWAY, reason: "".into() };
            let _ = tokio::time::timeout(
                std::time::Duration::from_secs(1),
                self.sink.send(Message::Close(Some(goodbye))),
            )
            .await;
        }
        written
    }

    async fn write(&mut self) -> Result<(), axum::Error> {
        loop {
            let message = tokio::select! {
                biased;
                Some(()) = self.pings.recv() => Message::Ping(Bytes::new()),
                bytes = self.bytes.next() => match bytes {
                    Some(bytes) => Message::Binary(bytes),
                    None => return Ok(()),
                },
            };
            self.sink.feed(message).await?;
            // A ping does not wait for the end of an upload.
            while self.pings.is_empty()
                && let Ok(bytes) = self.bytes.try_recv()
            {
                self.sink.feed(Message::Binary(bytes)).await?;
            }
            self.sink.flush().await?;
        }
    }
}
