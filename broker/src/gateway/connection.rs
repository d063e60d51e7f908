//! One SSH connection, of either hop: who it is, and what is asked on it.
//!
//! The library calls the handler below from its loop, so nothing here waits for a device or a slow
//! client. Waiting happens in tasks of [`Live`]; the exception is a person's proof, before which there is
//! nothing else to do.

mod handler;

use super::channel::{self, Start};
use super::door::{Client, Door, NotAuthenticated, Refusal, RefusedKind};
use super::front::Inside;
use super::gate::{Allowed, Gate, NotAllowed, Purpose, Wish};
use super::jump::prohibited;
use super::live::{Entry, Live, Waiting};
use super::transport::{Stream, Transport};
use crate::waiting::Slot;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::ssh_key::Certificate;
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::open;
use futures_util::future::BoxFuture;
use russh::ChannelId;
use russh::server::{Auth, ChannelOpenHandle, Session};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

/// Refusals on one connection before it is closed: each one is an audit event.
const REFUSALS: usize = 100;

/// Where a connection stands.
pub enum Place<P> {
    /// What the listener accepted.
    Front,
    /// Inside a channel of a front connection, under a device's name.
    Inner { device: DeviceId, outer: P, outer_kex: Option<String> },
    /// Under a device's name, by a WebSocket or a ticket that somebody got for an access token.
    Direct { device: DeviceId, caller: P, tls: Option<String> },
}

/// Why a connection is given up from within.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    #[error("the client sent past its window")]
    WindowIgnored,
    #[error("too many refusals")]
    TooManyRefusals,
    #[error("a channel without a proven person")]
    NotProven,
}

/// Runs one connection to its end. Boxed, because an inner connection runs within an outer one.
pub fn serve<D: Door, S: Stream>(
    inside: Arc<Inside<D>>,
    stream: S,
    place: Place<D::Person>,
    source: SocketAddr,
    config: Arc<russh::server::Config>,
    mut slot: Option<Slot>,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let limits = inside.limits;
        let deadline = slot.as_ref().map_or_else(Instant::now, Slot::since) + limits.login_grace;
        let (transport, control) = Transport::new(stream, limits.egress, limits.egress_hard);
        let _cut = control.cut_on_drop();
        let outer_kex = match &place {
            Place::Front => None,
            Place::Inner { outer_kex, .. } => outer_kex.clone(),
            Place::Direct { tls, .. } => tls.clone(),
        };
        let stopping = inside.stopping.clone();
        let live = Live::new(inside, source, control, outer_kex);
        let ending = Ending(live.clone());
        let handler = Connection { live: live.clone(), place, proven: None, opened: 0, refusals: 0 };

        // An inner connection has no place to give up: its person was proven on the outer one.
        let give_way = slot.as_ref().map(Slot::give_way).unwrap_or_default();
        let begun = russh::server::run_stream(config, transport, handler);
        let begun = tokio::select! {
            begun = timeout_at(deadline, begun) => begun,
            () = give_way.cancelled() => {
                debug!("gave way before an SSH identification");
                return;
            }
        };
        let mut running = match begun {
            Ok(Ok(running)) => running,
            Ok(Err(error)) => {
                debug!(%error, "not an SSH client");
                return;
            }
            Err(_) => {
                debug!("no SSH identification in time");
                return;
            }
        };
        let _ = live.handle.set(running.handle());
        let (mut proven, mut told) = (false, false);
        let ended = loop {
            tokio::select! {
                ended = &mut running => break ended,
                () = live.authenticated.cancelled(), if !proven => {
                    proven = true;
                    drop(slot.take());
                }
                () = give_way.cancelled(), if !proven => {
                    debug!("gave way to somebody who came later");
                    live.control.cut();
                    break (&mut running).await;
                }
                () = tokio::time::sleep_until(deadline), if !proven => {
                    debug!("nobody was proven in time");
                    live.control.cut();
                    break (&mut running).await;
                }
                () = stopping.cancelled(), if !told => {
                    told = true;
                    live.disconnect("the gateway is stopping");
                }
            }
        };
        match ended {
            Ok(()) => debug!("closed"),
            Err(error) => debug!(%error, "ended"),
        }
        live.finish().await;
        drop(ending);
    })
}

/// Leaves no task of a connection behind, also when [`serve`] is dropped half-way.
struct Ending<D: Door>(Arc<Live<D>>);

impl<D: Door> Drop for Ending<D> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A person, and what the connection is for. Only a certificate whose key has signed makes one.
struct Proven<P> {
    person: P,
    purpose: Purpose,
}

struct Connection<D: Door> {
    live: Arc<Live<D>>,
    place: Place<D::Person>,
    proven: Option<Proven<D::Person>>,
    opened: usize,
    refusals: usize,
}

impl<D: Door> Connection<D> {
    fn gate(&self) -> &Gate {
        &self.live.inside.gate
    }

    fn proven(&self) -> Result<&Proven<D::Person>, Broken> {
        // The library hands no channel over before authentication has succeeded.
        self.proven.as_ref().ok_or(Broken::NotProven)
    }

    fn ask(&self, wish: Wish<'_>) -> Result<Result<Allowed, NotAllowed>, Broken> {
        Ok(self.gate().ask(&self.proven()?.purpose, wish))
    }

    /// Judges a certificate; what it proves is good for this user name only.
    async fn judge(&self, user: &str, certificate: &Certificate) -> Result<Proven<D::Person>, Judged> {
        let inside = &self.live.inside;
        let person = timeout(inside.limits.step, inside.door.authenticate(certificate, self.live.source))
            .await
            .map_err(|_| Judged::Known(refused_certificate(Refusal::new("the gateway is busy: try again"))))?
            .map_err(|refused| match refused {
                NotAuthenticated::Stranger => Judged::Stranger,
                NotAuthenticated::Known(refusal) => Judged::Known(refused_certificate(refusal)),
            })?;
        let purpose = match &self.place {
            Place::Front => self.gate().purpose_of_front(user),
            Place::Inner { outer, .. } if !inside.door.same_person(outer, &person) => Err(NotAllowed {
                kind: RefusedKind::OtherPerson,
                refusal: Refusal::new("the jump and the device were given certificates of different people"),
            }),
            Place::Direct { caller, .. } if !inside.door.same_person(caller, &person) => Err(NotAllowed {
                kind: RefusedKind::OtherPerson,
                refusal: Refusal::new(
                    "the certificate is another person's than the sign-in of daypass proxy",
                ),
            }),
            Place::Inner { device, .. } | Place::Direct { device, .. } => {
                Gate::purpose_of_inner(user, device)
            }
        };
        match purpose {
            Ok(purpose) => Ok(Proven { person, purpose }),
            Err(refused) => Err(Judged::Known(refused)),
        }
    }

    /// Refuses a proof and says why. The line can only travel in the disconnect that follows the failure,
    /// and a client that has no other key leaves before it reads that. A failure called a partial success
    /// makes it look at its keys once more (RFC 4252 section 5.1) and so read on; nothing is granted, and
    /// the disconnect is sent before anything else is read.
    fn last_word(&self, refusal: &Refusal) -> Auth {
        self.live.disconnect(&refusal.to_string());
        Auth::Reject { proceed_with_methods: None, partial_success: true }
    }

    fn device(&self) -> Option<DeviceId> {
        match (&self.place, &self.proven) {
            (Place::Inner { device, .. } | Place::Direct { device, .. }, _)
            | (_, Some(Proven { purpose: Purpose::Session { device, .. }, .. })) => Some(device.clone()),
            _ => None,
        }
    }

    fn record(&mut self, why: &NotAllowed) -> Result<(), Broken> {
        self.refusals += 1;
        if self.refusals > REFUSALS {
            return Err(Broken::TooManyRefusals);
        }
        let person = self.proven.as_ref().map(|proven| proven.person.clone());
        self.live.refused(person, self.device(), why);
        Ok(())
    }

    /// Refuses a channel before it exists.
    async fn refuse_open(&mut self, reply: ChannelOpenHandle, why: &NotAllowed) -> Result<(), Broken> {
        self.record(why)?;
        reply.reject(prohibited(&why.refusal.to_string())).await;
        Ok(())
    }

    /// Refuses a side wish on a channel that goes on: one line on its stderr.
    fn refuse_aside(&mut self, id: ChannelId, why: &NotAllowed, session: &mut Session) -> Result<(), Broken> {
        self.record(why)?;
        session.extended_data(id, 1, format!("daypass: {}\r\n", why.refusal))?;
        Ok(())
    }

    /// Refuses a global request: one line for `ssh -v`, and the library's failure.
    fn refuse_global(&mut self, wish: Wish<'_>, session: &mut Session) -> Result<bool, Broken> {
        if let Err(why) = self.ask(wish)? {
            self.record(&why)?;
            session.debug(true, &format!("daypass: {}", why.refusal), "")?;
        }
        // Nothing of the gate's is a global request.
        Ok(false)
    }

    /// Counts channels; the line when there are too many.
    fn count(&mut self) -> Result<(), NotAllowed> {
        let limits = &self.live.inside.limits;
        let too_many =
            |message: String| NotAllowed { kind: RefusedKind::Limit, refusal: Refusal::new(message) };
        if self.live.channels().len() >= limits.channels {
            return Err(too_many(format!("at most {} channels at once on one connection", limits.channels)));
        }
        // The library keeps a little of every channel that the server closes first.
        if self.opened >= limits.channels_in_life {
            return Err(too_many("this connection has had its channels: connect again".to_owned()));
        }
        self.opened += 1;
        Ok(())
    }

    fn client(&self, session: &Session) -> Client {
        Client {
            address: self.live.source,
            version: made_visible(&String::from_utf8_lossy(session.remote_sshid()), 255),
            kex: self.live.control.kex(),
            outer_kex: self.live.outer_kex.clone(),
        }
    }

    /// A channel is asked for what it is for: once.
    fn start<'w>(
        &mut self,
        id: ChannelId,
        session: &mut Session,
        wish: impl FnOnce(Option<open::Pty>) -> Wish<'w>,
    ) -> Result<(), Broken> {
        let waiting = match self.live.channels().get_mut(&id) {
            Some(Entry::Session(entry)) => entry.waiting.take().map(|waiting| (waiting, entry.gone.clone())),
            _ => None,
        };
        let Some((waiting, gone)) = waiting else {
            session.channel_failure(id)?;
            return Ok(());
        };
        let Waiting { write, engineer, pty, env } = waiting;
        let on_terminal = pty.is_some();
        let asked = self.ask(wish(pty))?;
        // Answered at once: the library keeps one reply per channel, and only a channel whose request
        // succeeded shows its line to a person.
        session.channel_success(id)?;
        let live = self.live.clone();
        match asked {
            Ok(Allowed::Open(kind)) => {
                let Proven { person, purpose } = self.proven()?;
                let Purpose::Session { login, device } = purpose else { return Err(Broken::NotProven) };
                let start = Start::<D> {
                    person: person.clone(),
                    device: device.clone(),
                    login: login.clone(),
                    client: self.client(session),
                    kind,
                    env,
                    input: engineer,
                    write,
                    gone,
                };
                self.live.spawn(channel::run(live, start));
            }
            Ok(Allowed::SessionChannel | Allowed::Jump(_)) => return Err(Broken::NotProven),
            Err(why) => {
                self.record(&why)?;
                self.live.spawn(async move {
                    channel::refuse(&live, &write, &why.refusal, on_terminal, 1).await;
                    live.channels().remove(&write.id());
                });
            }
        }
        Ok(())
    }
}

/// What a certificate came to, when it did not prove anybody.
enum Judged {
    Stranger,
    Known(NotAllowed),
}

fn refused_certificate(refusal: Refusal) -> NotAllowed {
    NotAllowed { kind: RefusedKind::Certificate, refusal }
}
