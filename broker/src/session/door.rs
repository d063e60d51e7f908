//! What stands behind the gateway: sign-in by certificate, and sessions.

use super::open::{Client, OpenRefused, open};
use super::running::{ChannelRefused, Running};
use super::{End, asking};
use crate::audit::{self, Actor, Event, Kind};
use crate::broker::Ctx;
use crate::certificate::issue;
use crate::gateway::{
    self, Door, EndNotice, HostIdentity, NotAuthenticated, NotGranted, Refusal, Refused, SessionDoor,
    Terminal, Wanted,
};
use crate::login::{self, VerifiedPerson};
use crate::session::wire::EngineerChannel;
use crate::tunnel::OpenError;
use async_trait::async_trait;
use daypass_protocol::api::EndReason;
use daypass_protocol::certificate::{self, Expectation, Verified};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::ssh_key::{Certificate, PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::open::{OpenKind, RefusedCode};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// How long a host certificate of an inner hop lives. It is made again when half of that is over.
const HOST_LIFETIME: Duration = Duration::from_hours(24);
/// Most host certificates of inner hops kept at hand.
const MOST_HOSTS: usize = 10_000;

/// The gateway's door to the rest of the broker.
#[derive(Debug)]
pub struct GatewayDoor {
    ctx: Ctx,
    /// The key of every inner hop; each device's name gets its own certificate over it.
    key: PrivateKey,
    hosts: Mutex<HashMap<DeviceId, (Certificate, Timestamp)>>,
}

impl GatewayDoor {
    pub fn new(ctx: Ctx) -> Result<Self, crate::random::NoRandomness> {
        Ok(Self { ctx, key: crate::certificate::signer::generate()?, hosts: Mutex::default() })
    }
}

/// Somebody on a connection of the gateway: who they were when it began, and what proves whether they still are.
#[derive(Clone, Debug)]
pub struct Arrived {
    person: VerifiedPerson,
    /// `None` for who came with an access token: that lets in to say SSH, where a certificate is asked for.
    certificate: Option<Verified>,
}

impl Arrived {
    pub fn by_token(person: VerifiedPerson) -> Self {
        Self { person, certificate: None }
    }
}

impl GatewayDoor {
    /// Who arrived, as they are now: connections live for hours, and meanwhile certificates end, people sign out
    /// and change their teams.
    async fn still(&self, arrived: &Arrived) -> Result<VerifiedPerson, Refusal> {
        match &arrived.certificate {
            Some(certificate) => self.present(certificate).await,
            None => Err(Refusal::new("an access token opens no session")),
        }
    }

    async fn present(&self, certificate: &Verified) -> Result<VerifiedPerson, Refusal> {
        let now = self.ctx.clock.now();
        login::from_identity_certificate(&self.ctx.db, certificate, now).await.map_err(|error| match error {
            login::Error::NotSignedIn(why) => {
                tracing::info!(%why, "a sign-in is not valid any more");
                Refusal::new("your sign-in is not valid any more").hint("run: daypass login")
            }
            error => {
                tracing::error!(%error, "a sign-in could not be checked");
                Refusal::new("the broker cannot check your sign-in now; the cause is in its log")
                    .hint("try again in a moment")
            }
        })
    }
}

#[async_trait]
impl Door for GatewayDoor {
    type Person = Arrived;

    async fn authenticate(
        &self,
        certificate: &Certificate,
        source: SocketAddr,
    ) -> Result<Arrived, NotAuthenticated> {
        let now = self.ctx.clock.now();
        let cas = [self.ctx.keys.identity.public_key().clone()];
        let verified = certificate::verify(
            certificate,
            &Expectation {
                cas: &cas,
                principal: None,
                now,
                source: Some(source.ip()),
                // Revocations of identity certificates are rows of the register, asked below.
                revoked_serials: &[],
            },
        );
        let verified = match verified {
            Ok(verified) => verified,
            Err(refusal) => {
                tracing::warn!(%source, cause = %refusal, "an identity certificate was refused");
                return Err(match refusal {
                    certificate::Refusal::Expired { .. } => NotAuthenticated::Known(
                        Refusal::new("your identity certificate has expired").hint("run: daypass login"),
                    ),
                    certificate::Refusal::NotYetValid { .. } => {
                        NotAuthenticated::Known(Refusal::new("your identity certificate is not valid yet"))
                    }
                    _ => NotAuthenticated::Stranger,
                });
            }
        };
        match self.present(&verified).await {
            Ok(person) => Ok(Arrived { person, certificate: Some(verified) }),
            Err(refusal) => {
                tracing::warn!(%source, cause = %refusal.message, "an identity certificate was refused");
                Err(NotAuthenticated::Known(refusal))
            }
        }
    }

    async fn bare_key(&self, key: &PublicKey) -> Option<Refusal> {
        let found = sqlx::query(
            "SELECT MAX(valid_before) AS until FROM certificate WHERE kind = 'identity' AND key_fingerprint = $1",
        )
        .bind(daypass_protocol::signed::fingerprint(key))
        .fetch_one(self.ctx.db.pool())
        .await;
        let until: Option<i64> = match found {
            Ok(row) => sqlx::Row::try_get(&row, "until").ok().flatten(),
            Err(error) => {
                tracing::error!(%error, "looking for a certificate");
                None
            }
        };
        until.map(|until| {
            if Timestamp(until) <= self.ctx.clock.now() {
                Refusal::new("your identity certificate has expired").hint("run: daypass login")
            } else {
                Refusal::new("a key alone opens nothing here")
                    .hint("offer its certificate: daypass setup ssh")
            }
        })
    }

    fn same_person(&self, a: &Arrived, b: &Arrived) -> bool {
        a.person.id() == b.person.id()
    }

    async fn host_identity(&self, device: &DeviceId) -> Result<HostIdentity, Refusal> {
        let now = self.ctx.clock.now();
        let held = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(device).cloned();
        if let Some((certificate, until)) = held
            && now + HOST_LIFETIME / 2 < until
        {
            return Ok(HostIdentity { key: self.key.clone(), certificate });
        }
        // For any name that could be a device's: whether it exists is told only to those who may know.
        let until = now + HOST_LIFETIME;
        let names = vec![device.to_string(), format!("{device}.{}", self.ctx.config.ssh.host_suffix)];
        let minted = async {
            let mut tx = self.ctx.db.begin().await?;
            let key = self.key.public_key();
            let known = crate::request::store::device_facts(tx.conn(), device).await?.is_some();
            let (certificate, recorded) =
                issue::host(&mut tx, &self.ctx.keys, names, known.then_some(device), key, now, until).await?;
            tx.commit(recorded).await?;
            Ok::<_, issue::IssueError>(certificate)
        };
        let certificate = minted.await.map_err(|error| {
            tracing::error!(%error, %device, "no host certificate");
            Refusal::new("the broker could not prove the device's name; the cause is in its log")
        })?;
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MOST_HOSTS {
            hosts.clear();
        }
        hosts.insert(device.clone(), (certificate.clone(), until));
        Ok(HostIdentity { key: self.key.clone(), certificate })
    }

    async fn begin(
        &self,
        arrived: &Arrived,
        device: &DeviceId,
        login: &Login,
        first: &OpenKind,
        client: gateway::Client,
    ) -> Result<Arc<dyn SessionDoor>, Refusal> {
        let person = self.still(arrived).await?;
        let kex = [client.kex, client.outer_kex].into_iter().flatten().collect::<Vec<_>>().join(" via ");
        let client = Client { address: client.address, version: client.version, kex };
        // In a task of its own: an engineer who leaves half-way must not leave half a session. What it made
        // is then dropped, and with it the session ends.
        let (ctx, device, login) = (self.ctx.clone(), device.clone(), login.clone());
        let first = first.clone();
        let opening = self.ctx.tasks.spawn(async move {
            let opened = open(&ctx, &person, &device, &login, &first, &client).await?;
            Ok::<_, OpenRefused>(GatewaySession(Running::start(&ctx, opened)))
        });
        match opening.await {
            Ok(Ok(session)) => Ok(Arc::new(session)),
            Ok(Err(refused)) => Err(Refusal {
                hint: refused.hint(),
                grantable: refused.is_grantable(),
                ..Refusal::new(refused.to_string())
            }),
            Err(error) => {
                tracing::error!(%error, "opening a session failed");
                Err(Refusal::new("the broker could not open the session; the cause is in its log"))
            }
        }
    }

    async fn ask(
        &self,
        arrived: &Arrived,
        wanted: Wanted<'_>,
        refused: &Refusal,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), NotGranted> {
        let person = self.still(arrived).await.map_err(NotGranted::Refused)?;
        asking::ask(&self.ctx, &person, wanted, refused, terminal).await
    }

    async fn refused(&self, arrived: Option<&Arrived>, refused: Refused) {
        metrics::counter!("daypass_gateway_refused_total", "what" => refused.kind.as_str()).increment(1);
        let actor = match arrived {
            Some(arrived) => arrived.person.actor(),
            // Whoever proves nothing must not be able to fill the audit log. The rest is in the program's.
            None if !self.ctx.strangers.may_enter(&self.ctx.clock, refused.source.ip()) => {
                tracing::debug!(source = %refused.source, what = refused.kind.as_str(), "one more stranger was refused");
                return;
            }
            None => Actor::Stranger(refused.source.ip().to_string()),
        };
        let mut event = Event::new(Kind::GatewayRefused, actor).detail(serde_json::json!({
            "what": refused.kind.as_str(), "message": refused.message, "source": refused.source.to_string(),
        }));
        event.device = refused.device;
        if let Err(error) = audit::note(&self.ctx.db, self.ctx.clock.now(), event).await {
            tracing::error!(%error, "a refusal of the gateway could not be entered in the audit log");
        }
    }
}

/// A running session, as the gateway sees it: let go of, it ends.
struct GatewaySession(Arc<Running>);

impl Drop for GatewaySession {
    fn drop(&mut self) {
        self.0.live().end(End::because(EndReason::Closed));
    }
}

#[async_trait]
impl SessionDoor for GatewaySession {
    async fn open_channel(
        &self,
        kind: OpenKind,
        env: Vec<(String, String)>,
        engineer: EngineerChannel,
    ) -> Result<(), Refusal> {
        self.0.open_channel(kind, env, engineer).await.map_err(|refused| match refused {
            ChannelRefused::Device(OpenError::Refused(told)) if told.code != RefusedCode::Failed => {
                Refusal::new(ChannelRefused::Device(OpenError::Refused(told)).to_string())
            }
            ChannelRefused::Device(_) => Refusal::failure(refused.to_string()),
            _ => Refusal::new(refused.to_string()),
        })
    }

    fn notices(&self) -> broadcast::Receiver<String> {
        self.0.live().notices.subscribe()
    }

    async fn ended(&self) -> EndNotice {
        EndNotice { message: self.0.live().ended().await.message() }
    }

    async fn closed(&self) {
        self.0.live().end(End::because(EndReason::Closed));
    }
}
