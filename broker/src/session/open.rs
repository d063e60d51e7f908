//! Opening: grant, policy, permit, certificate, recorder, in this order.

use super::{End, Full, Live, Permit, Place, store};
use crate::audit::{self, Actor, Event, Kind};
use crate::broker::Ctx;
use crate::certificate::{issue, signer};
use crate::db::{self, Unwritable};
use crate::login::VerifiedPerson;
use crate::policy::{self, Permission, Policies, Subject};
use crate::recording::{Recorder, SessionFacts};
use crate::request::{OutOfScope, StoredGrant, store as requests};
use crate::tunnel::Tunnel;
use daypass_protocol::api::{EndReason, RequestState, Verdict};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::ids::{DeviceId, Login, RequestId, SessionId};
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::open::OpenKind;
use std::net::SocketAddr;
use std::sync::Arc;

/// The engineer's client.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    /// Identification string, made visible.
    pub version: String,
    /// Key exchange towards the engineer.
    pub kex: String,
}

/// Why no session opens, in words for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum OpenRefused {
    #[error("you have no live grant for {login} on {device}")]
    NoGrant { device: DeviceId, login: Login },
    #[error("your request {request} for {login} on {device} is still waiting for an answer")]
    Waiting { request: RequestId, device: DeviceId, login: Login },
    #[error("your grant {grant} {why}")]
    NotInGrant { grant: RequestId, why: OutOfScope, device: DeviceId, login: Login, channel: ChannelKind },
    #[error("policy refuses it now: {0}")]
    Policy(String),
    #[error("{0} is not connected")]
    DeviceOffline(DeviceId),
    #[error("{device} has {sessions} sessions open already; that is the limit")]
    DeviceBusy { device: DeviceId, sessions: usize },
    #[error("you have {0} sessions open already; that is the limit")]
    TooManySessions(usize),
    #[error("the session cannot be recorded, and nothing happens here unrecorded")]
    Recorder,
    #[error("{0}, and nothing happens here unrecorded")]
    Unwritable(Unwritable),
    #[error("the broker could not open the session; the cause is in its log")]
    Failed,
}

impl OpenRefused {
    /// Whether a grant is what is missing.
    pub fn is_grantable(&self) -> bool {
        matches!(self, Self::NoGrant { .. } | Self::Waiting { .. } | Self::NotInGrant { .. })
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoGrant { device, login } => Some(format!("run: daypass request {device} -l {login}")),
            Self::Waiting { device, login, .. } => {
                Some(format!("wait for it with: daypass ssh {device} -l {login}"))
            }
            Self::NotInGrant { why: OutOfScope::OwnSsh, .. } => None,
            Self::NotInGrant { why: OutOfScope::Target(target), device, login, .. } => {
                // Whoever named it may not be the person: what is no target is not put into a command to copy.
                let target = target.parse::<ForwardTarget>().ok()?;
                Some(format!("ask for it with: daypass request {device} -l {login} --forward {target}"))
            }
            Self::NotInGrant { device, login, channel, .. } => {
                Some(format!("ask for it with: daypass request {device} -l {login} --channel {channel}"))
            }
            Self::DeviceOffline(_) => {
                Some("it connects by itself when it has power and a network".to_owned())
            }
            _ => None,
        }
    }
}

/// Everything that a session is made of, once it may carry bytes.
#[derive(Debug)]
pub struct Opened {
    pub live: Arc<Live>,
    pub tunnel: Arc<Tunnel>,
    /// One line; signed for this session alone.
    pub certificate: String,
    /// The certificate's key: lives here, for as long as the session does.
    pub key: PrivateKey,
    pub recorder: Recorder,
}

/// Opens a session whose first channel is this one.
pub async fn open(
    ctx: &Ctx,
    person: &VerifiedPerson,
    device: &DeviceId,
    login: &Login,
    first: &OpenKind,
    client: &Client,
) -> Result<Opened, OpenRefused> {
    let now = ctx.clock.now();
    let grant = match live_grant(ctx, person, device, login, first, now).await {
        Ok(grant) => grant,
        Err(refused) => {
            note_refusal(ctx, person, device, &refused).await;
            return Err(refused);
        }
    };
    let (permit, place, tunnel) = match permit(ctx, person, &grant, now).await {
        Ok(taken) => taken,
        Err(refused) => {
            note_refusal(ctx, person, device, &refused).await;
            return Err(refused);
        }
    };
    begin(ctx, person, permit, place, tunnel, client, now).await
}

fn failed(what: &'static str) -> impl Fn(sqlx::Error) -> OpenRefused {
    move |error| {
        tracing::error!(%error, "{what}");
        unwritten(&error)
    }
}

fn unwritten(error: &sqlx::Error) -> OpenRefused {
    db::unwritable(error).map_or(OpenRefused::Failed, OpenRefused::Unwritable)
}

/// The live grant of this person, device and login that permits the channel. One that is not bound to a
/// command comes before one that is, because more channels may follow; then the one that ends last.
async fn live_grant(
    ctx: &Ctx,
    person: &VerifiedPerson,
    device: &DeviceId,
    login: &Login,
    first: &OpenKind,
    now: Timestamp,
) -> Result<StoredGrant, OpenRefused> {
    let mut conn = ctx.db.pool().acquire().await.map_err(failed("looking for a grant"))?;
    let grants = requests::live_grants(&mut conn, person.id(), device, login, now)
        .await
        .map_err(failed("looking for a grant"))?;
    let mut nearest = None;
    let mut bound = None;
    for grant in grants.into_iter().filter(|grant| grant.is_live(now)) {
        match grant.scope.permits(first) {
            Ok(()) if grant.scope.command.is_none() => return Ok(grant),
            Ok(()) => {
                bound.get_or_insert(grant);
            }
            Err(why) => {
                nearest.get_or_insert_with(|| OpenRefused::NotInGrant {
                    grant: grant.request,
                    why,
                    device: device.clone(),
                    login: login.clone(),
                    channel: first.channel_kind(),
                });
            }
        }
    }
    if let Some(grant) = bound {
        return Ok(grant);
    }
    if let Some(refused) = nearest {
        return Err(refused);
    }
    let waiting = requests::Filter {
        state: Some(RequestState::Pending),
        person: Some(person.id().clone()),
        device: Some(device.clone()),
        before: None,
    };
    let waiting = requests::list_newest(&mut conn, &waiting, 20)
        .await
        .map_err(failed("looking for waiting requests"))?
        .into_iter()
        .find(|request| request.login == *login && request.lapses_at > now);
    Err(match waiting {
        Some(request) => {
            OpenRefused::Waiting { request: request.id, device: device.clone(), login: login.clone() }
        }
        None => OpenRefused::NoGrant { device: device.clone(), login: login.clone() },
    })
}

/// Asks these policies once more, now, about what was granted.
pub(crate) async fn still_allowed(
    ctx: &Ctx,
    policies: &Policies,
    subject: Subject,
    grant: &StoredGrant,
    now: Timestamp,
) -> Result<Permission, sqlx::Error> {
    let mut conn = ctx.db.pool().acquire().await?;
    let request = requests::find(&mut conn, &grant.request).await?.ok_or(sqlx::Error::RowNotFound)?;
    let device = requests::device_facts(&mut conn, &grant.device).await?.ok_or(sqlx::Error::RowNotFound)?;
    let answers = requests::answers(&mut conn, &grant.request).await?;
    let approved = answers.iter().filter(|answer| answer.verdict == Verdict::Approve);
    let approvals =
        policy::Approvals::of(&request.person, approved.map(|answer| (&answer.by.id, answer.teams.iter())));
    let mut ask = request.as_ask(subject, device);
    ask.channels = grant.scope.channels.clone();
    ask.command.clone_from(&grant.scope.command);
    ask.forward_targets.clone_from(&grant.scope.targets);
    ask.duration = grant.starts_at.until(grant.ends_at);
    Ok(policy::holds(policies, &ask, &approvals, now))
}

async fn permit(
    ctx: &Ctx,
    person: &VerifiedPerson,
    grant: &StoredGrant,
    now: Timestamp,
) -> Result<(Permit, Place, Arc<Tunnel>), OpenRefused> {
    let policies = ctx.policies.current();
    let asked = still_allowed(ctx, &policies, Subject::from(person), grant, now).await;
    let limits = match asked.map_err(failed("asking policy"))? {
        Permission::Permitted { by } => ctx.config.sessions.limits.and(policies.session_limits(&by)),
        Permission::Refused(refusal) => return Err(OpenRefused::Policy(refusal.reason)),
    };
    let place = ctx.sessions.take_place(&grant.device, person.id(), &limits).map_err(|full| match full {
        Full::Device(sessions) => OpenRefused::DeviceBusy { device: grant.device.clone(), sessions },
        Full::Person(sessions) => OpenRefused::TooManySessions(sessions),
    })?;
    let tunnel =
        ctx.tunnels.get(&grant.device).ok_or_else(|| OpenRefused::DeviceOffline(grant.device.clone()))?;
    let random = crate::random::bytes().map_err(|error| {
        tracing::error!(%error, "no session id");
        OpenRefused::Failed
    })?;
    let label = if person.email().is_empty() { person.id().as_str() } else { person.email() };
    let permit = Permit {
        session: SessionId::from_random(random),
        grant: grant.request.clone(),
        person_label: label.to_owned(),
        device: grant.device.clone(),
        login: grant.login.clone(),
        scope: grant.scope.clone(),
        ends_at: grant.ends_at,
        limits,
        policy_set: policies.hash().to_owned(),
    };
    Ok((permit, place, tunnel))
}

async fn begin(
    ctx: &Ctx,
    person: &VerifiedPerson,
    permit: Permit,
    place: Place,
    tunnel: Arc<Tunnel>,
    client: &Client,
    now: Timestamp,
) -> Result<Opened, OpenRefused> {
    let live = Arc::new(Live::new(&permit, person.id().clone()));
    let key = signer::generate().map_err(|error| {
        tracing::error!(%error, "no session key");
        OpenRefused::Failed
    })?;

    // The session's row, its certificate and both events commit together, or none does.
    let minted = async {
        let mut tx = ctx.db.begin().await?;
        store::add(&mut tx, &live, &client.address.to_string(), &client.kex, tunnel.tls_group(), now).await?;
        let event = Event::new(Kind::SessionOpening, person.actor())
            .request(&live.grant)
            .session(&live.id)
            .device(&live.device)
            .detail(serde_json::json!({
                "login": live.login, "client_address": client.address.to_string(),
                "client_version": client.version, "client_kex": client.kex,
                "device_kex": tunnel.tls_group(),
            }));
        let _opening = audit::append(&mut tx, now, event).await?;
        let (certificate, recorded) =
            issue::session(&mut tx, &ctx.keys, permit, key.public_key(), now).await?;
        tx.commit(recorded).await?;
        Ok::<_, issue::IssueError>(certificate)
    };
    let certificate =
        minted.await.and_then(|certificate| Ok(certificate.to_openssh()?)).map_err(|error| {
            tracing::error!(%error, session = %live.id, "a session could not be opened");
            match &error {
                issue::IssueError::Database(error) => unwritten(error),
                _ => OpenRefused::Failed,
            }
        })?;

    let facts = SessionFacts {
        session: live.id.clone(),
        request: live.grant.clone(),
        person: person.id().clone(),
        email: person.email().to_owned(),
        device: live.device.clone(),
        login: live.login.clone(),
        client_address: client.address.to_string(),
    };
    let recorder = match ctx.recordings.start(&facts, live.limits.recording_bytes).await {
        Ok(recorder) => recorder,
        Err(error) => {
            tracing::error!(%error, session = %live.id, "the recorder did not start");
            let end = End::with(EndReason::RecorderFailed, error.to_string());
            live.end(end.clone());
            write_down(ctx, live, end);
            return Err(OpenRefused::Recorder);
        }
    };
    if let Err(error) = store::opened(ctx, &live, person.actor()).await {
        tracing::error!(%error, session = %live.id, "a session could not be opened");
        let end = End::because(EndReason::Failed);
        live.end(end.clone());
        let (ctx, refused) = (ctx.clone(), unwritten(&error));
        ctx.tasks.clone().spawn(async move {
            if let Err(error) = recorder.close(end.reason, None).await {
                tracing::error!(%error, session = %live.id, "the recording of a failed session did not close");
            }
            store::finish(&ctx, &live, &end).await;
        });
        return Err(refused);
    }
    // Nothing else sets it.
    let _ = live.screens.set(recorder.screens());
    ctx.sessions.add(live.clone(), place);
    Ok(Opened { live, tunnel, certificate, key, recorder })
}

/// The end of a session that did not begin, written down as soon as it can be; nobody waits for that.
fn write_down(ctx: &Ctx, live: Arc<Live>, end: End) {
    let ctx = ctx.clone();
    ctx.tasks.clone().spawn(async move { store::finish(&ctx, &live, &end).await });
}

/// A refusal at the door is evidence too: who wanted in where, and why not.
async fn note_refusal(ctx: &Ctx, person: &VerifiedPerson, device: &DeviceId, refused: &OpenRefused) {
    let event = Event::new(Kind::SessionRefused, person.actor())
        .device(device)
        .detail(serde_json::json!({ "reason": refused.to_string() }));
    if let Err(error) = audit::note(&ctx.db, ctx.clock.now(), event).await {
        tracing::error!(%error, "a refusal could not be entered in the audit log");
    }
}

/// Who the audit log names for what the broker does by itself.
pub(super) const BY_BROKER: Actor = Actor::Broker;
