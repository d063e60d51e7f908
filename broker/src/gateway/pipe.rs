//! The in-memory pipe on which the inner connection of `ssh -J` runs, inside a channel of the outer one.
//!
//! What the client sends is pushed in from the outer connection's data handler, which must not wait; it
//! is counted, and the outer window opens only as far as it is taken. What is sent to the client waits in
//! a bounded buffer for the pump into the outer channel.

use crate::session::wire::Relief;
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// Bytes that may wait for the pump.
pub const ROOM: usize = 128 * 1024;

/// Makes a pipe: the outer connection's two ends, and the stream of the inner connection.
pub fn pipe(relief: Relief) -> (PipeIn, PipeOut, PipeStream) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    let out = Arc::new(Mutex::new(Out::default()));
    let (alive, gone) = mpsc::channel(1);
    (
        PipeIn { sender, queued: queued.clone(), _alive: alive },
        PipeOut { out: out.clone(), client: gone },
        PipeStream { receiver, queued, relief, rest: Bytes::new(), out },
    )
}

/// Where the client's bytes go in.
#[derive(Clone, Debug)]
pub struct PipeIn {
    sender: mpsc::UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
    /// Never sent on: dropped with the last clone of this.
    _alive: mpsc::Sender<()>,
}

impl PipeIn {
    /// False when the inner connection is gone.
    pub fn push(&self, bytes: Bytes) -> bool {
        let length = bytes.len();
        self.queued.fetch_add(length, Ordering::AcqRel);
        let taken = self.sender.send(bytes).is_ok();
        if !taken {
            self.queued.fetch_sub(length, Ordering::AcqRel);
        }
        taken
    }

    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }
}

/// Where the bytes to the client come out.
#[derive(Debug)]
pub struct PipeOut {
    out: Arc<Mutex<Out>>,
    client: mpsc::Receiver<()>,
}

#[derive(Debug, Default)]
struct Out {
    buffer: BytesMut,
    ended: bool,
    /// The pump is gone.
    closed: bool,
    writer: Option<Waker>,
    pump: Option<Waker>,
}

fn lock(out: &Mutex<Out>) -> MutexGuard<'_, Out> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PipeOut {
    /// Up to `most` bytes; `None` when the inner connection has ended and everything was taken.
    pub async fn next(&mut self, most: usize) -> Option<Bytes> {
        std::future::poll_fn(|cx| {
            let mut out = lock(&self.out);
            if !out.buffer.is_empty() {
                let n = out.buffer.len().min(most);
                let bytes = out.buffer.split_to(n).freeze();
                if let Some(writer) = out.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Some(bytes));
            }
            if out.ended {
                return Poll::Ready(None);
            }
            out.pump = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until nothing more comes from the client: every [`PipeIn`] is gone.
    pub async fn client_ended(&mut self) {
        while self.client.recv().await.is_some() {}
    }
}

impl Drop for PipeOut {
    fn drop(&mut self) {
        let mut out = lock(&self.out);
        out.closed = true;
        if let Some(writer) = out.writer.take() {
            writer.wake();
        }
    }
}

/// The inner connection's stream.
#[derive(Debug)]
pub struct PipeStream {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
    relief: Relief,
    rest: Bytes,
    out: Arc<Mutex<Out>>,
}

impl AsyncRead for PipeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match self.receiver.poll_recv(cx) {
                Poll::Ready(Some(bytes)) => self.rest = bytes,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        let before = self.queued.fetch_sub(n, Ordering::AcqRel);
        self.relief.taken(before, n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut out = lock(&self.out);
        if out.closed || out.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = bytes.len().min(ROOM.saturating_sub(out.buffer.len()));
        if n == 0 && !bytes.is_empty() {
            out.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        out.buffer.extend_from_slice(&bytes[..n]);
        if let Some(pump) = out.pump.take() {
            pump.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        end(&self.out);
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        end(&self.out);
    }
}

fn end(out: &Mutex<Out>) {
    let mut out = lock(out);
    out.ended = true;
    if let Some(pump) = out.pump.take() {
        pump.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_are_counted_until_they_are_taken() {
        let (input, _out, mut stream) = pipe(Relief::new(1, || ()));
        assert!(input.push(Bytes::from_static(b"hello")));
        assert_eq!(input.queued(), 5);
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!((&two, input.queued()), (b"he", 3));
        drop(stream);
        assert!(!input.push(Bytes::from_static(b"x")));
    }

    #[tokio::test]
    async fn relief_comes_when_what_is_queued_falls_below_its_mark() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let (input, _out, mut stream) = pipe(Relief::new(4, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(input.push(Bytes::from_static(b"hello")));
        let mut seen = Vec::new();
        for _ in 0..5 {
            stream.read_u8().await.unwrap();
            seen.push(calls.load(Ordering::Relaxed));
        }
        assert_eq!(seen, [0, 1, 1, 1, 1]);
    }

    #[tokio::test]
    async fn the_way_out_knows_when_the_client_has_ended() {
        let (input, mut out, _stream) = pipe(Relief::new(1, || ()));
        let other = input.clone();
        drop(input);
        tokio::select! {
            biased;
            () = out.client_ended() => panic!("one is left"),
            () = tokio::task::yield_now() => {}
        }
        drop(other);
        out.client_ended().await;
    }

    #[tokio::test]
    async fn the_way_out_is_bounded_and_ends_after_its_last_byte() {
        let (input, mut out, mut stream) = pipe(Relief::new(1, || ()));
        let writing = tokio::spawn(async move {
            stream.write_all(&vec![3; 3 * ROOM]).await.unwrap();
        });
        let mut got = 0;
        while let Some(bytes) = out.next(1000).await {
            assert!(bytes.len() <= 1000);
            got += bytes.len();
        }
        assert_eq!(got, 3 * ROOM);
        writing.await.unwrap();
        drop(input);
    }
}
