//! Tickets: one SSH connection on the gateway's own port, straight to a device's name.
//!
//! A jump costs a second SSH connection around the first, for the client and for us. Without it the gateway has to
//! know the device before SSH begins, which SSH has no word for. So `daypass proxy --fdpass` asks for a ticket by
//! HTTPS with an access token, sends it ahead of everything else, and hands the connection to `ssh`.
//!
//! A ticket goes over the wire in clear, and is worth nothing there: it is good once, and inside SSH the
//! certificate of the person who asked for it is asked for as everywhere. Nor can somebody on the way exchange it
//! for one to another device: the host certificate is of the device that the ticket was made for, and `ssh` checks
//! that against the name it was called with.
//!
//! Our identification goes out before anything is read: there are clients that wait for it.

use super::direct::{Admitted, Caller, NotLetIn};
use super::door::{Door, HostIdentity, Refusal, Refused, RefusedKind};
use super::front::Entrance;
use super::ssh::IDENTIFICATION;
use super::transport::Stream;
use crate::random;
use daypass_protocol::api::{TICKET, TICKET_LINE};
use daypass_protocol::ids::DeviceId;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf,
};
use tokio::time::{Instant, timeout};
use tracing::debug;

/// How long a ticket is good for: it is used as soon as it is there.
pub const LIFETIME: Duration = Duration::from_secs(30);
/// Most tickets of one person: their oldest gives way.
const A_PERSON: usize = 32;
/// Most tickets altogether.
const MOST: usize = 4096;

/// What a ticket is good for.
pub struct Promise<P> {
    pub caller: Caller<P>,
    pub device: DeviceId,
    pub identity: HostIdentity,
    until: Instant,
}

/// Tickets that were not used yet, by the hash of each.
pub struct Tickets<P>(Mutex<HashMap<String, Promise<P>>>);

impl<P> Default for Tickets<P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<P> Tickets<P> {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Promise<P>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a promise under its ticket, if there is room; `same` says whether another is of the same person.
    fn keep(&self, ticket: &str, promise: Promise<P>, same: impl Fn(&P) -> bool) -> Result<(), Full> {
        let mut kept = self.lock();
        let now = Instant::now();
        kept.retain(|_, promise| now < promise.until);
        let own = kept.iter().filter(|(_, promise)| same(&promise.caller.person));
        let (own, oldest) = own.fold((0, None::<(&String, Instant)>), |(count, oldest), (hash, promise)| {
            let oldest = oldest.filter(|(_, until)| *until <= promise.until);
            (count + 1, oldest.or(Some((hash, promise.until))))
        });
        if own >= A_PERSON {
            let oldest = oldest.map(|(hash, _)| hash.clone());
            oldest.and_then(|hash| kept.remove(&hash));
        } else if kept.len() >= MOST {
            return Err(Full);
        }
        kept.insert(random::hash(ticket), promise);
        Ok(())
    }

    /// What the ticket is good for; from then on it is good for nothing.
    fn take(&self, ticket: &str) -> Option<Promise<P>> {
        self.lock().remove(&random::hash(ticket)).filter(|promise| Instant::now() < promise.until)
    }
}

/// There are as many tickets as there may be.
struct Full;

impl<D: Door> Entrance<D> {
    /// A ticket to what the caller's `ssh` calls `host`, within the limits that a connection has.
    pub async fn ticket(&self, caller: Caller<D::Person>, host: &str) -> Result<String, NotLetIn> {
        let Admitted { caller, device, identity, .. } = self.ask(caller, host).await?;
        let ticket = random::token().map_err(|error| {
            tracing::error!(%error, "no ticket");
            NotLetIn::Refused(Refusal::new("the broker could not make a ticket; the cause is in its log"))
        })?;
        let person = caller.person.clone();
        let promise = Promise { caller, device, identity, until: Instant::now() + LIFETIME };
        let door = &self.inside().door;
        match self.tickets().keep(&ticket, promise, |other| door.same_person(other, &person)) {
            Ok(()) => Ok(ticket),
            Err(Full) => Err(NotLetIn::Full),
        }
    }

    /// What this ticket is good for, or nothing: that is recorded, and said to the client.
    pub(super) async fn redeem<S: Stream>(
        &self,
        ticket: &str,
        source: SocketAddr,
        stream: &mut S,
    ) -> Option<Promise<D::Person>> {
        let promise = self.tickets().take(ticket);
        if promise.is_none() {
            let message = "the ticket was used, or it is too late for it: connect again".to_owned();
            if let Err(error) = goodbye(stream, &message, self.inside().limits.linger).await {
                debug!(%error, "the client did not hear why");
            }
            self.record(None, Refused { kind: RefusedKind::Ticket, message, source, device: None }).await;
        }
        promise
    }
}

/// Says who we are, and reads what is ahead of SSH: a ticket, or nothing.
pub async fn ahead<S: Stream + AsyncBufRead>(stream: &mut S) -> io::Result<Option<String>> {
    stream.write_all(format!("{IDENTIFICATION}\r\n").as_bytes()).await?;
    stream.flush().await?;
    if stream.fill_buf().await?.first() != TICKET.as_bytes().first() {
        return Ok(None);
    }
    let mut line = String::new();
    stream.take(TICKET_LINE as u64).read_line(&mut line).await?;
    line.strip_prefix(TICKET)
        .and_then(|rest| rest.strip_suffix('\n'))
        .map(|ticket| Some(ticket.trim_end_matches('\r').to_owned()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "neither SSH nor a ticket"))
}

/// SSH_MSG_DISCONNECT (RFC 4253 section 11.1) before any key exchange, and time to read it.
async fn goodbye<S: Stream>(stream: &mut S, line: &str, linger: Duration) -> io::Result<()> {
    const DISCONNECT: u8 = 1;
    const BY_APPLICATION: u32 = 11;
    let line = format!("daypass: {line}");
    let text = |text: &str| {
        let len = u32::try_from(text.len()).unwrap_or(0);
        [&len.to_be_bytes()[..], text.as_bytes()].concat()
    };
    let payload = [&[DISCONNECT][..], &BY_APPLICATION.to_be_bytes(), &text(&line), &text("")].concat();
    // RFC 4253 section 6: at least four bytes of padding, and a multiple of eight altogether.
    let padding = 4 + (8 - (4 + 1 + payload.len() + 4) % 8) % 8;
    let len = u32::try_from(1 + payload.len() + padding).map_err(io::Error::other)?;
    let pad = u8::try_from(padding).map_err(io::Error::other)?;
    let packet = [&len.to_be_bytes()[..], &[pad], &payload, &vec![0; padding]].concat();
    stream.write_all(&packet).await?;
    stream.shutdown().await?;
    // Closed over unread bytes, a connection is reset, and takes the line with it.
    let mut unread = [0; 1024];
    let leaving = async { while stream.read(&mut unread).await.is_ok_and(|n| n > 0) {} };
    // Who stays has had their time.
    let _ = timeout(linger, leaving).await;
    Ok(())
}

/// A stream on which our identification was sent already: what the SSH library says first is left out.
pub struct Announced<S> {
    stream: S,
    left_out: usize,
}

impl<S> Announced<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, left_out: IDENTIFICATION.len() + "\r\n".len() }
    }
}

impl<S: Stream> AsyncRead for Announced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Stream> AsyncWrite for Announced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.left_out > 0 {
            let n = self.left_out.min(bytes.len());
            self.left_out -= n;
            return Poll::Ready(Ok(n));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daypass_protocol::ssh_key::certificate::Builder;

    fn promise(person: u8) -> Promise<u8> {
        let key = crate::certificate::signer::generate().unwrap();
        let mut builder = Builder::new([9; 16], key.public_key(), 0, 1).unwrap();
        builder.all_principals_valid().unwrap();
        let certificate = builder.sign(&key).unwrap();
        Promise {
            caller: Caller { person, source: "127.0.0.1:1".parse().unwrap(), tls: String::new() },
            device: "gw-0042".parse().unwrap(),
            identity: HostIdentity { key, certificate },
            until: Instant::now() + LIFETIME,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_for_moments() {
        let tickets = Tickets::default();
        assert!(tickets.keep("one", promise(1), |_| true).is_ok());
        assert!(tickets.keep("two", promise(1), |_| true).is_ok());
        assert!(tickets.take("three").is_none());
        assert!(tickets.take("one").is_some());
        assert!(tickets.take("one").is_none());
        tokio::time::advance(LIFETIME).await;
        assert!(tickets.take("two").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn somebody_who_asks_for_tickets_without_end_crowds_out_only_their_own() {
        let tickets = Tickets::default();
        let keep = |ticket: &str, person: u8| tickets.keep(ticket, promise(person), |other| *other == person);
        assert!(keep("bens", 2).is_ok());
        for number in 0..2 * A_PERSON {
            assert!(keep(&format!("anas {number}"), 1).is_ok());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(tickets.lock().len(), A_PERSON + 1);
        assert!(tickets.take("bens").is_some());
        assert!(tickets.take(&format!("anas {}", A_PERSON - 1)).is_none());
        assert!(tickets.take(&format!("anas {A_PERSON}")).is_some());
        // What is over makes room.
        tokio::time::advance(LIFETIME).await;
        assert!(keep("late", 2).is_ok());
        assert_eq!(tickets.lock().len(), 1);
    }
}
