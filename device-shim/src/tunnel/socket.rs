//! The WebSocket as a byte stream for yamux, with a pulse.
//!
//! Carries binary messages both ways, pings when nothing was heard for the keepalive time, and fails when
//! nothing comes back. yamux's own ping has no deadline, so a half-open connection would live for ever.

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// How long after a ping anything at all must have come.
const PONG_DEADLINE: Duration = Duration::from_secs(20);
/// Longest keepalive while channels run: somebody waits in front of each.
const BUSY_KEEPALIVE: Duration = Duration::from_secs(15);

/// What the error of a link that was silent says; the keepalive learns from it.
#[derive(Debug, thiserror::Error)]
#[error("nothing was heard for {} seconds after a ping", PONG_DEADLINE.as_secs())]
pub struct HalfOpen;

/// Bytes in, bytes out.
pub struct Socket<S> {
    ws: WebSocketStream<S>,
    keepalive: Duration,
    /// How many channels run.
    busy: watch::Receiver<usize>,
    heard: Instant,
    pinged: bool,
    timer: Pin<Box<Sleep>>,
}

impl<S> std::fmt::Debug for Socket<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket(keepalive {:?})", self.keepalive)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub fn new(ws: WebSocketStream<S>, keepalive: Duration, busy: watch::Receiver<usize>) -> Self {
        let timer = Box::pin(sleep(keepalive));
        Self { ws, keepalive, busy, heard: Instant::now(), pinged: false, timer }
    }

    /// When silence has lasted long enough to ask.
    fn silent_until(&self) -> Instant {
        let busy = *self.busy.borrow() > 0;
        self.heard + if busy { self.keepalive.min(BUSY_KEEPALIVE) } else { self.keepalive }
    }

    /// Pings when it is time to; an error when the last ping went unanswered.
    fn poll_pulse(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let silent_until = self.silent_until();
            if silent_until > Instant::now() {
                self.pinged = false;
                self.timer.as_mut().reset(silent_until);
            } else if self.pinged {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, HalfOpen));
            } else {
                self.pinged = true;
                self.timer.as_mut().reset(Instant::now() + PONG_DEADLINE);
                // A link too clogged to take a ping is asked by what clogs it.
                if let Poll::Ready(ready) = self.ws.poll_ready_unpin(cx)
                    && let Err(error) =
                        ready.and_then(|()| self.ws.start_send_unpin(Message::Ping(Bytes::new())))
                {
                    return Poll::Ready(io_error(error));
                }
            }
        }
        // A ping that was buffered goes out now, or when the socket can be written again.
        if self.pinged
            && let Poll::Ready(Err(error)) = self.ws.poll_flush_unpin(cx)
        {
            return Poll::Ready(io_error(error));
        }
        Poll::Pending
    }
}

fn io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Socket<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.ws.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    self.heard = Instant::now();
                    self.pinged = false;
                    match message {
                        // An empty message would read as the end of the stream.
                        Message::Binary(bytes) if !bytes.is_empty() => return Poll::Ready(Some(Ok(bytes))),
                        Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                        Message::Close(_) => return Poll::Ready(None),
                        Message::Text(_) => {
                            let error = "a text message after the hello";
                            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))));
                        }
                    }
                }
                Poll::Ready(Some(Err(WsError::ConnectionClosed)) | None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(io_error(error)))),
                Poll::Pending => return self.poll_pulse(cx).map(|error| Some(Err(error))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Bytes> for Socket<S> {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ws.poll_ready_unpin(cx).map_err(io_error)
    }

    fn start_send(mut self: Pin<&mut Self>, bytes: Bytes) -> io::Result<()> {
        // A channel that opens says so: from here on silence counts sooner.
        let silent_until = self.silent_until();
        if !self.pinged && self.timer.deadline() > silent_until {
            self.timer.as_mut().reset(silent_until);
        }
        self.ws.start_send_unpin(Message::Binary(bytes)).map_err(io_error)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ws.poll_flush_unpin(cx).map_err(io_error)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ws.poll_close_unpin(cx).map_err(io_error)
    }
}
