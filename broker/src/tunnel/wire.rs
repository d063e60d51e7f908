//! A WebSocket as the byte stream that yamux wants, with pings of our own beside it.
//!
//! One task writes to the socket: yamux's bytes and our pings meet there, and what has piled up goes out
//! in one flush. yamux's own ping has no deadline; the WebSocket's, here, has.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::{CancellationToken, PollSender};

/// Messages of at most [`BATCH`] bytes that may wait for the socket.
const QUEUE: usize = 4;
/// Bytes gathered into one WebSocket message.
const BATCH: usize = 64 * 1024;

/// What was heard from the device, and when.
#[derive(Debug)]
pub(super) struct Heard {
    at: watch::Sender<Instant>,
    /// The greatest number among the pings it answered.
    pong: watch::Sender<u64>,
}

impl Heard {
    fn new() -> Self {
        Self { at: watch::Sender::new(Instant::now()), pong: watch::Sender::new(0) }
    }

    pub(super) fn last(&self) -> Instant {
        *self.at.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Instant> {
        self.at.subscribe()
    }

    pub(super) fn pongs(&self) -> watch::Receiver<u64> {
        self.pong.subscribe()
    }
}

/// The writing half: bytes of yamux, and pings.
#[derive(Debug)]
pub(super) struct Writer {
    sink: SplitSink<WebSocket, Message>,
    bytes: mpsc::Receiver<Bytes>,
    pings: mpsc::Receiver<u64>,
}

/// The parts of a socket whose hello is over.
pub(super) struct Parts<T> {
    pub io: T,
    pub writer: Writer,
    pub pings: mpsc::Sender<u64>,
    pub heard: Arc<Heard>,
}

pub(super) fn split(socket: WebSocket) -> Parts<impl AsyncRead + AsyncWrite + Send> {
    let (sink, stream) = socket.split();
    let (bytes_tx, bytes) = mpsc::channel::<Bytes>(QUEUE);
    let (pings_tx, pings) = mpsc::channel(2);
    let heard = Arc::new(Heard::new());
    let listening = heard.clone();
    let incoming = stream
        .take_while(|message| std::future::ready(!matches!(message, Ok(Message::Close(_)))))
        .filter_map(move |message| {
            if message.is_ok() {
                listening.at.send_replace(Instant::now());
            }
            std::future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(Message::Pong(payload)) => {
                    if let Ok(number) = payload.as_ref().try_into().map(u64::from_be_bytes) {
                        listening.pong.send_if_modified(|last| {
                            let newer = number > *last;
                            *last = number.max(*last);
                            newer
                        });
                    }
                    None
                }
                Ok(Message::Ping(_) | Message::Close(_)) => None,
                Ok(Message::Text(_)) => {
                    Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message after the hello")))
                }
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
    let outgoing = PollSender::new(bytes_tx).sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let io = tokio::io::join(
        StreamReader::new(Box::pin(incoming)),
        // yamux writes a header of twelve bytes and then its payload: one message for both.
        BufWriter::with_capacity(BATCH, SinkWriter::new(CopyToBytes::new(outgoing))),
    );
    Parts { io, writer: Writer { sink, bytes, pings }, pings: pings_tx, heard }
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
                Some(number) = self.pings.recv() => {
                    Message::Ping(Bytes::copy_from_slice(&number.to_be_bytes()))
                }
                bytes = self.bytes.recv() => match bytes {
                    Some(bytes) => Message::Binary(bytes),
                    None => return Ok(()),
                },
            };
            self.sink.feed(message).await?;
            while let Ok(bytes) = self.bytes.try_recv() {
                self.sink.feed(Message::Binary(bytes)).await?;
            }
            self.sink.flush().await?;
        }
    }
}
