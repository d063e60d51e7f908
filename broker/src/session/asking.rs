//! Asking for access at the terminal of a plain `ssh`: what for, who can answer, and the wait for it.

use crate::approval::Outcome;
use crate::broker::Ctx;
use crate::gateway::{Left, NotGranted, Refusal, Terminal, Wanted};
use crate::login::VerifiedPerson;
use crate::request::{Scope, SubmitError, desk, store as requests, view};
use daypass_protocol::api::{Ask, GrantState, Request, RequestState, Verdict};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::duration::Seconds;
use daypass_protocol::ids::RequestId;
use daypass_protocol::said;
use daypass_protocol::text::{MAX_REASON, visible_command};
use daypass_protocol::tunnel::open::OpenKind;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// The window that is asked for, where `DAYPASS_FOR` says nothing else: that of `daypass request`.
const WINDOW: Seconds = Seconds(30 * 60);
/// Most of a person's own requests for one device that are looked at.
const RECENT: i64 = 20;

/// Raises a request, or finds the one that waits, and waits for its answer with the person.
pub(super) async fn ask(
    ctx: &Ctx,
    person: &VerifiedPerson,
    wanted: Wanted<'_>,
    refused: &Refusal,
    terminal: &mut Terminal<'_>,
) -> Result<(), NotGranted> {
    if !terminal.is_attended().await {
        return Err(NotGranted::Unattended);
    }
    let id = match waiting(ctx, person, wanted).await? {
        Some(id) => {
            terminal.say(&format!("already waiting: {id}")).await.map_err(|left| stays(&id, left))?;
            id
        }
        None => raise(ctx, person, wanted, refused, terminal).await?,
    };
    answered(ctx, person, &id, terminal).await
}

fn refuse(message: impl Into<String>) -> NotGranted {
    NotGranted::Refused(Refusal::new(message))
}

/// For an error that is the broker's own.
fn failed(error: &dyn std::fmt::Display) -> NotGranted {
    tracing::error!(%error, "asking at a terminal");
    refuse("the broker could not take the request; the cause is in its log")
}

/// Somebody left before anything was asked.
fn nothing(left: Left) -> NotGranted {
    NotGranted::Left(Refusal::new(match left {
        Left::Interrupted | Left::Gone => "nothing was asked",
        Left::Silent => "nothing was asked: nobody typed",
    }))
}

/// Somebody left, and what was asked stays.
fn stays(id: &RequestId, left: Left) -> NotGranted {
    let message = match left {
        Left::Interrupted | Left::Gone => format!("stopped waiting; {id} stays open"),
        Left::Silent => format!("your terminal does not take anything; {id} stays open"),
    };
    let hint = format!("take it back with: daypass cancel {id}, or connect again to wait");
    NotGranted::Left(Refusal::new(message).hint(hint))
}

/// The person's own request that waits already, and would be enough.
async fn waiting(
    ctx: &Ctx,
    person: &VerifiedPerson,
    wanted: Wanted<'_>,
) -> Result<Option<RequestId>, NotGranted> {
    let now = ctx.clock.now();
    let mut conn = ctx.db.pool().acquire().await.map_err(|error| failed(&error))?;
    let filter = requests::Filter {
        state: Some(RequestState::Pending),
        person: Some(person.id().clone()),
        device: Some(wanted.device.clone()),
        before: None,
    };
    let found = requests::list_newest(&mut conn, &filter, RECENT).await.map_err(|error| failed(&error))?;
    let enough = found.into_iter().find(|request| {
        let scope = Scope {
            channels: request.channels.clone(),
            command: request.command.clone(),
            targets: request.forward_targets.clone(),
        };
        request.login == *wanted.login && request.lapses_at > now && scope.permits(wanted.kind).is_ok()
    });
    Ok(enough.map(|request| request.id))
}

/// What a channel of this kind is asked for with: as `daypass ssh` asks for it.
fn terms(kind: &OpenKind) -> Result<(ChannelSet, Option<String>), NotGranted> {
    let channels = |kinds: &[ChannelKind]| kinds.iter().copied().collect();
    match kind {
        OpenKind::Shell { .. } => Ok((channels(&[ChannelKind::Shell, ChannelKind::Exec]), None)),
        OpenKind::Exec { command, .. } => {
            let command = String::from_utf8(command.0.clone())
                .ok()
                .filter(|command| visible_command(command).is_ok())
                .ok_or_else(|| refuse("a command with hidden characters cannot be asked for alone"))?;
            Ok((channels(&[ChannelKind::Exec]), Some(command)))
        }
        OpenKind::Sftp | OpenKind::Forward { .. } => Err(NotGranted::Unattended),
    }
}

/// Asks for the reason, unless the client sent it along, and stores the request.
async fn raise(
    ctx: &Ctx,
    person: &VerifiedPerson,
    wanted: Wanted<'_>,
    refused: &Refusal,
    terminal: &mut Terminal<'_>,
) -> Result<RequestId, NotGranted> {
    let Wanted { device, login, kind, env } = wanted;
    let sent = |name: &str| {
        let found = env.iter().find(|(sent, _)| sent == name);
        found.map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let (channels, command) = terms(kind)?;
    let window = match sent("DAYPASS_FOR") {
        None => WINDOW,
        Some(text) => text.parse().map_err(|error| refuse(format!("DAYPASS_FOR: {error}")))?,
    };
    {
        let mut conn = ctx.db.pool().acquire().await.map_err(|error| failed(&error))?;
        let known = requests::device_facts(&mut conn, device).await.map_err(|error| failed(&error))?;
        if known.is_none() {
            return Err(refuse(SubmitError::UnknownDevice(device.to_string()).to_string()));
        }
    }
    terminal.say(&refused.message).await.map_err(nothing)?;
    if ctx.tunnels.get(device).is_none() {
        let offline = format!("{device} is not connected now; it connects by itself when it can");
        terminal.say(&offline).await.map_err(nothing)?;
    }
    let reason = match sent("DAYPASS_REASON") {
        Some(reason) => reason,
        None => terminal.ask("to ask for it, say what for:", MAX_REASON).await.map_err(nothing)?,
    };
    let ask = Ask {
        device: device.clone(),
        login: login.clone(),
        channels,
        duration_s: window.0,
        reason,
        ticket: sent("DAYPASS_TICKET"),
        emergency: false,
        command,
        forward_targets: Vec::new(),
    };
    // In a task of its own: a request is stored whole even if the person leaves at this moment.
    let (ours, person) = (ctx.clone(), person.clone());
    let asked = ctx.tasks.spawn(async move { desk::ask(&ours, &person, ask).await });
    match asked.await.map_err(|error| failed(&error))? {
        Ok((id, Outcome::Denied(refusal))) => {
            let refused = Refusal::new(format!("{id} is refused. {}", refusal.reason));
            Err(NotGranted::Refused(if refusal.would_allow.is_empty() {
                refused
            } else {
                refused.hint(format!("would be possible: {}", refusal.would_allow.join("; ")))
            }))
        }
        Ok((id, Outcome::Granted { .. } | Outcome::Waiting { .. })) => Ok(id),
        Err(SubmitError::Database(error)) => Err(failed(&error)),
        Err(SubmitError::Randomness(error)) => Err(failed(&error)),
        Err(unfit) => Err(refuse(unfit.to_string())),
    }
}

/// Waits until the request is answered, and says meanwhile who can.
async fn answered(
    ctx: &Ctx,
    person: &VerifiedPerson,
    id: &RequestId,
    terminal: &mut Terminal<'_>,
) -> Result<(), NotGranted> {
    let mut changes = desk::Changes::of(ctx, id);
    let since = ctx.clock.now();
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut told, mut lapses_at) = (String::new(), since);
    loop {
        let line = match view::shown_by_id(ctx, person, id).await {
            Ok(request) => {
                if judged(&request)? {
                    terminal.forget().await.map_err(|left| stays(id, left))?;
                    return terminal.say(&said::granted(&request)).await.map_err(|left| stays(id, left));
                }
                lapses_at = request.lapses_at;
                said::waits_for(&request)
            }
            Err(problem) => {
                tracing::warn!(request = %id, ?problem, "a request that somebody waits for cannot be read");
                format!("the broker cannot look at {id} now; it tries again")
            }
        };
        if line != told {
            terminal.say(&line).await.map_err(|left| stays(id, left))?;
            if told.is_empty()
                && let Ok(page) = ctx.config.https.url.join(&format!("requests/{id}"))
            {
                let at = format!("it is answered at {page}; Ctrl-C leaves, and the request stays");
                terminal.say(&at).await.map_err(|left| stays(id, left))?;
            }
            told = line;
        }
        let changed = changes.next();
        tokio::pin!(changed);
        loop {
            tokio::select! {
                () = &mut changed => break,
                _ = second.tick() => {
                    let now = ctx.clock.now();
                    // Short, because a line that wraps cannot be drawn over.
                    let status = said::waited(since.until(now).as_secs(), now.until(lapses_at).as_secs());
                    terminal.draw(&status).await.map_err(|left| stays(id, left))?;
                }
                left = terminal.left() => return Err(stays(id, left)),
                () = ctx.stopping.cancelled() => {
                    return Err(refuse(format!("the broker is stopping; {id} stays open")));
                }
            }
        }
    }
}

/// Whether the request is a live grant; an error where it never will be.
fn judged(request: &Request) -> Result<bool, NotGranted> {
    let id = &request.id;
    match (request.state, &request.grant) {
        (RequestState::Pending, _) => Ok(false),
        (RequestState::Granted, Some(grant)) if grant.state == GrantState::Live => Ok(true),
        (RequestState::Granted, _) => Err(refuse(format!("{id} was granted, and its time is over"))),
        (RequestState::Denied, _) => {
            let denied = request.answers.iter().rev().find(|answer| answer.verdict == Verdict::Deny);
            Err(refuse(match denied {
                Some(answer) => format!("{id} was {}", said::answer(answer)),
                None => format!("{id} is refused: policy does not allow it any more"),
            }))
        }
        (RequestState::Cancelled, _) => Err(refuse(format!("{id} was cancelled"))),
        (RequestState::Lapsed, _) => Err(NotGranted::Refused(
            Refusal::new(format!("{id} lapsed: nobody answered in time"))
                .hint("ask again, and tell somebody who can approve"),
        )),
    }
}
