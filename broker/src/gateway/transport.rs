//! The stream under an SSH connection, with what the SSH library leaves to us.
//!
//! Two peers that both block in writing deadlock, so writing never waits here: what the stream does not
//! take is kept, the library's read, which it always polls, pushes it on, and whoever produces output
//! waits for [`Control::room`] first. Reading can be slowed for a moment, when a client that has filled
//! its window is down to two-byte packets. And a connection can be cut at any time, whatever the library
//! is waiting for.

use super::kex::Sniffer;
use bytes::{Buf, BytesMut};
use futures_util::task::AtomicWaker;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// A byte stream to or from a client: TCP, or the pipe inside another connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// How long reading rests at most after a window was left at two bytes.
const PAUSE: Duration = Duration::from_millis(20);
/// A buffer that grew past this many times the soft bound is given back when it has emptied. Smaller ones
/// stay: bulk output fills and empties them all the time, and fresh memory costs page faults.
const KEEP: usize = 2;

/// The hold that others have on a [`Transport`].
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: Instant,
    soft: usize,
    queued: AtomicUsize,
    room: Notify,
    /// Milliseconds after `started` until which reading rests.
    paused_until: AtomicU64,
    cut: AtomicBool,
    reader: AtomicWaker,
    kex: OnceLock<String>,
}

impl Control {
    /// Waits until little enough waits towards the client.
    pub async fn room(&self) {
        loop {
            let room = self.0.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.0.queued.load(Ordering::Acquire) < self.0.soft {
                return;
            }
            room.await;
        }
    }

    /// Lets reading rest for a moment, or until [`Control::resume`].
    pub fn pause(&self) {
        let until = (self.0.started.elapsed() + PAUSE).as_millis();
        self.0.paused_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Ends a rest.
    pub fn resume(&self) {
        if self.0.paused_until.swap(0, Ordering::AcqRel) != 0 {
            self.0.reader.wake();
        }
    }

    #[cfg(test)]
    pub fn rests(&self) -> bool {
        self.0.paused_until.load(Ordering::Acquire) != 0
    }

    /// Ends the stream: reading and writing fail from now on.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.room.notify_waiters();
    }

    /// The key exchange that the client's first proposal leads to.
    pub fn kex(&self) -> Option<String> {
        self.0.kex.get().cloned()
    }

    /// Cuts when dropped: the library runs a connection in a task of its own, which nothing else ends.
    pub fn cut_on_drop(&self) -> CutOnDrop {
        CutOnDrop(self.clone())
    }
}

#[derive(Debug)]
pub struct CutOnDrop(Control);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}

pub struct Transport<S> {
    stream: S,
    egress: BytesMut,
    hard: usize,
    shared: Arc<Shared>,
    pause: Option<Pin<Box<Sleep>>>,
    sniffer: Option<Sniffer>,
}

impl<S> std::fmt::Debug for Transport<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("egress", &self.egress.len()).finish_non_exhaustive()
    }
}

impl<S: Stream> Transport<S> {
    /// `soft` and `hard` are [`super::Limits::egress`] and [`super::Limits::egress_hard`].
    pub fn new(stream: S, soft: usize, hard: usize) -> (Self, Control) {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            soft,
            queued: AtomicUsize::new(0),
            room: Notify::new(),
            paused_until: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            kex: OnceLock::new(),
        });
        let control = Control(shared.clone());
        let sniffer = Some(Sniffer::default());
        (Self { stream, egress: BytesMut::new(), hard, shared, pause: None, sniffer }, control)
    }

    fn check_cut(&self, cx: &Context<'_>) -> io::Result<()> {
        self.shared.reader.register(cx.waker());
        if self.shared.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut"));
        }
        Ok(())
    }

    /// Pushes on what is kept; ready when nothing is.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut result = Poll::Ready(Ok(()));
        while !self.egress.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.egress) {
                Poll::Ready(Ok(0)) => {
                    result = Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    break;
                }
                Poll::Ready(Ok(n)) => self.egress.advance(n),
                Poll::Ready(Err(error)) => {
                    result = Poll::Ready(Err(error));
                    break;
                }
                Poll::Pending => {
                    result = Poll::Pending;
                    break;
                }
            }
        }
        if self.egress.is_empty() && self.egress.capacity() > KEEP * self.shared.soft {
            self.egress = BytesMut::new();
        }
        self.publish();
        result
    }

    fn publish(&self) {
        let now = self.egress.len();
        let before = self.shared.queued.swap(now, Ordering::AcqRel);
        if before >= self.shared.soft && now < self.shared.soft {
            self.shared.room.notify_waiters();
        }
    }

    /// Pending while reading rests.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.shared.paused_until.load(Ordering::Acquire);
        let until = self.shared.started + Duration::from_millis(until);
        if Instant::now() >= until {
            self.pause = None;
            return Poll::Ready(());
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if pause.deadline() != until {
            pause.as_mut().reset(until);
        }
        pause.as_mut().poll(cx)
    }
}

impl<S: Stream> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check_cut(cx)?;
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_pause(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if let Some(sniffer) = &mut this.sniffer {
            match sniffer.feed(&buf.filled()[before..]) {
                Poll::Pending => {}
                Poll::Ready(kex) => {
                    this.sniffer = None;
                    if let Some(kex) = kex {
                        let _ = this.shared.kex.set(kex);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check_cut(cx)?;
        let written = if this.egress.is_empty() {
            match Pin::new(&mut this.stream).poll_write(cx, buf) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            }
        } else {
            0
        };
        let rest = &buf[written..];
        if this.egress.len() + rest.len() > this.hard {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the client does not take what is sent to it",
            )));
        }
        this.egress.extend_from_slice(rest);
        this.publish();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn writing_never_waits_and_producers_do() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut transport, control) = Transport::new(near, 4096, 1 << 20);
        transport.write_all(&vec![7; 100_000]).await.unwrap();
        transport.flush().await.unwrap();
        tokio::select! {
            biased;
            () = control.room() => panic!("there is no room"),
            () = tokio::task::yield_now() => {}
        }
        // The read side pushes what is kept.
        let pump = tokio::spawn(async move {
            let mut byte = [0];
            transport.read_exact(&mut byte).await.unwrap();
            transport
        });
        let mut got = vec![0; 100_000];
        far.read_exact(&mut got).await.unwrap();
        assert!(got.iter().all(|byte| *byte == 7));
        control.room().await;
        far.write_all(&[1]).await.unwrap();
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_at_the_hard_bound() {
        let (near, _far) = tokio::io::duplex(1024);
        let (mut transport, _) = Transport::new(near, 4096, 65536);
        transport.write_all(&vec![0; 60_000]).await.unwrap();
        assert!(transport.write_all(&vec![0; 10_000]).await.is_err());
    }

    #[tokio::test]
    async fn a_cut_ends_a_read_that_waits() {
        let (near, _far) = tokio::io::duplex(1024);
        let (mut transport, control) = Transport::new(near, 4096, 65536);
        let reading = tokio::spawn(async move { transport.read_u8().await });
        tokio::task::yield_now().await;
        control.cut();
        assert!(reading.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_pause_rests_reading_and_nothing_is_lost() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut transport, control) = Transport::new(near, 4096, 65536);
        far.write_all(b"ab").await.unwrap();
        control.pause();
        let start = Instant::now();
        assert_eq!(transport.read_u8().await.unwrap(), b'a');
        assert!(start.elapsed() >= PAUSE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_ends_at_once_when_there_is_room_again() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut transport, control) = Transport::new(near, 4096, 65536);
        far.write_all(b"ab").await.unwrap();
        control.pause();
        let start = Instant::now();
        let reading = tokio::spawn(async move { transport.read_u8().await });
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        control.resume();
        assert_eq!(reading.await.unwrap().unwrap(), b'a');
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
