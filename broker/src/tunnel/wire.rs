//! A WebSocket as the byte stream that yamux wants, with pings of our own beside it.
//!
//! One future writes to the socket: yamux's bytes and our pings meet there, and what has piled up goes out
//! in one flush. Another reads from it. yamux's own ping has no deadline; the WebSocket's, here, has.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use daypass_protocol::tunnel::messages::Messages;
use futures_channel::mpsc;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages of at most 64 KiB that may wait for the socket.
const QUEUE: usize = 4;

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
pub(super) struct Parts {
    pub io: Io,
    pub reader: Reader,
    pub writer: Writer,
    pub pings: tokio::sync::mpsc::Sender<()>,
    pub heard: Arc<Heard>,
}

/// The socket as yamux sees it.
pub(super) type Io = Messages<mpsc::Receiver<io::Result<Bytes>>, mpsc::Sender<Bytes>>;

pub(super) fn split(socket: WebSocket) -> Parts {
    let (sink, stream) = socket.split();
    let (written, bytes) = mpsc::channel(QUEUE);
    let (received, incoming) = mpsc::channel(0);
    let (pings_tx, pings) = tokio::sync::mpsc::channel(2);
    let heard = Arc::new(Heard::new());
    let io = Messages::new(incoming, written);
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
