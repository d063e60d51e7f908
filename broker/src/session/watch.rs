//! Watching a session while it runs: what its terminal showed so far, and then what it shows.
//!
//! A watcher reads the recording that grows, as [`crate::recording::Screens`] says; nothing of a session waits for
//! it. What one costs is bounded: a file, the lines of [`AHEAD`] chunks that it has not taken yet, and what HTTP and
//! TLS hold of one answer, less than 2 MiB together. Every [`AGAIN`] it is asked anew whether it still may.

use super::http::{no_such, readable};
use super::{End, Live};
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::http::Problem;
use crate::http::parameters::{Path, Query};
use crate::login::LastingCaller;
use crate::policy::{Action, Resource};
use crate::recording::{Next, Screens};
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use daypass_protocol::api::{SessionState, WatchEnd, WatchEnded};
use daypass_protocol::ids::{PersonId, SessionId};
use futures_util::stream;
use serde::Deserialize;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use utoipa::IntoParams;

/// Watchers at the same time: of one person, and of all together.
const PER_PERSON: usize = 16;
const IN_ALL: usize = 128;
/// Chunks of lines that wait for a watcher who does not take them.
const AHEAD: usize = 2;
/// An empty line after so much silence: who is gone is noticed, and who waits knows that it goes on.
const BEAT: Duration = Duration::from_secs(15);
/// Between two looks at whether a watcher still may.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a look may fail because the broker cannot, a database that is away; then the watching ends.
const BLIND: Duration = Duration::from_secs(30);
/// What a session that ends may take to close its recording.
const CLOSING: Duration = Duration::from_secs(20);
/// How soon after its last terminal a session ends when its engineer has left.
const LEAVING: Duration = Duration::from_secs(5);
/// For handing over the last line.
const GOODBYE: Duration = Duration::from_secs(5);

/// Who watches, counted. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Watchers(Arc<Mutex<HashMap<PersonId, usize>>>);

impl Watchers {
    fn locked(&self) -> MutexGuard<'_, HashMap<PersonId, usize>> {
        // A panic while holding the lock leaves a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, person: &PersonId) -> Option<Seat> {
        let mut held = self.locked();
        let own = held.get(person).copied().unwrap_or(0);
        if own >= PER_PERSON || held.values().sum::<usize>() >= IN_ALL {
            return None;
        }
        held.insert(person.clone(), own + 1);
        Some(Seat { watchers: self.clone(), person: person.clone() })
    }
}

/// A watcher's place, given back when dropped.
#[derive(Debug)]
struct Seat {
    watchers: Watchers,
    person: PersonId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut held = self.watchers.locked();
        if let Some(own) = held.get_mut(&self.person) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.person);
            }
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchQuery {
    /// The channel whose terminal is shown; without it the first that is open, or the first that opens.
    channel: Option<u32>,
    /// Go on from this byte of its recording: `next` of an earlier last line.
    #[serde(default)]
    from: u64,
}

/// The terminal of a session that runs: what it showed so far, and then what it shows.
///
/// Lines of asciicast v2 as they are recorded, an empty one after 15 seconds of silence, and a last line that is a
/// `WatchEnd`. It does not end before the session does unless the terminal is closed, or the caller's token or right
/// ends. A session without a terminal is waited with.
#[utoipa::path(get, operation_id = "watch_session", path = "/v1/sessions/{id}/live", tag = "sessions",
    params(("id" = String, Path), WatchQuery),
    responses((status = 200, description = "Lines of asciicast v2, the last a WatchEnd", body = WatchEnd, content_type = "application/x-ndjson"),
        (status = 400), (status = 401), (status = 403), (status = 404), (status = 409), (status = 429)))]
pub(super) async fn live(
    State(ctx): State<Ctx>,
    caller: LastingCaller,
    Path(id): Path<SessionId>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, Problem> {
    let (session, facts) = readable(&ctx, &caller.person, &id).await?;
    ctx.authorize(&caller.person, Action::Watch, &Resource::Session(&facts)).await?;
    let over = || {
        Problem::conflict("not_live", format!("The session {id} is over already."))
            .hint(format!("`daypass play {id}` replays it."))
    };
    let live = ctx
        .sessions
        .get(&id)
        .filter(|live| session.state != SessionState::Ended && !live.is_ended())
        .ok_or_else(over)?;
    let screens = live.screens.get().cloned().ok_or_else(over)?;
    match query.channel {
        Some(channel) => {
            let there = screens.bytes(channel).ok_or_else(|| {
                Problem::not_found(format!("The session {id} has no open terminal on channel {channel}."))
            })?;
            if query.from > there {
                let text = format!("from is at most {there}: no more is on record.");
                return Err(Problem::bad_request("from", text));
            }
        }
        None if query.from > 0 => {
            return Err(Problem::bad_request("from", "from belongs to a channel, which is not named."));
        }
        None => {}
    }
    let seat = ctx
        .sessions
        .1
        .take(caller.person.id())
        .ok_or_else(|| Problem::too_many("Too many are watching sessions now, or you watch too many."))?;
    let event = Event::new(Kind::SessionWatched, caller.person.actor())
        .session(&id)
        .device(&session.device)
        .detail(serde_json::json!({ "channel": query.channel, "from": query.from }));
    audit::note(&ctx.db, ctx.clock.now(), event).await?;

    let (sender, receiver) = mpsc::channel(AHEAD);
    let show = Show {
        live,
        screens,
        channel: query.channel.map_or_else(OnceLock::new, OnceLock::from),
        sent: AtomicU64::new(query.from),
        sender,
    };
    // Of its own, and not the answer's: a right that ends must be noticed while nobody takes the answer.
    tokio::spawn(show.run(ctx, caller, seat));
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    let lines = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|lines| (Ok::<_, Infallible>(lines), receiver))
    });
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Why it ends.
enum Over {
    Session(End),
    Terminal,
    SignIn,
    Right,
    Failed,
    /// The watcher has left.
    Gone,
}

/// One watcher of one session.
struct Show {
    live: Arc<Live>,
    screens: Screens,
    channel: OnceLock<u32>,
    /// Bytes of the recording that were handed over, whole lines all of them.
    sent: AtomicU64,
    sender: mpsc::Sender<Bytes>,
}

impl Show {
    async fn run(self, ctx: Ctx, caller: LastingCaller, _seat: Seat) {
        let over = tokio::select! {
            over = self.show() => over,
            over = lost_right(&ctx, &caller, &self.live.id) => over,
            () = self.sender.closed() => Over::Gone,
        };
        let (ended, end) = match over {
            Over::Gone => return,
            Over::Session(end) => (WatchEnded::Session, Some(end)),
            Over::Terminal => (WatchEnded::Terminal, None),
            Over::SignIn => (WatchEnded::SignIn, None),
            Over::Right => (WatchEnded::Right, None),
            Over::Failed => (WatchEnded::Failed, None),
        };
        let (reason, detail) = end.map_or((None, None), |end| (Some(end.reason), end.detail));
        let (channel, next) = (self.channel.get().copied(), self.sent.load(Ordering::Relaxed));
        let last = WatchEnd { ended, reason, detail, channel, next };
        match serde_json::to_string(&last) {
            // Somebody who takes nothing does not get this either.
            Ok(line) => drop(timeout(GOODBYE, self.sender.send(Bytes::from(line + "\n"))).await),
            Err(error) => tracing::error!(%error, "a last line could not be written"),
        }
    }

    /// Hands over what there is and what comes.
    async fn show(&self) -> Over {
        match self.try_show().await {
            Ok(over) => over,
            Err(error) => {
                tracing::error!(%error, session = %self.live.id, "a session could not be shown");
                Over::Failed
            }
        }
    }

    async fn try_show(&self) -> io::Result<Over> {
        let Some(channel) = self.terminal().await else { return Ok(Over::Gone) };
        let channel = match channel {
            Ok(channel) => channel,
            Err(end) => return Ok(Over::Session(end)),
        };
        let _same = self.channel.set(channel);
        let Some(mut tail) = self.screens.tail(channel, self.sent.load(Ordering::Relaxed)).await? else {
            return Ok(self.closed().await);
        };
        let mut closing = None;
        loop {
            match tail.next().await? {
                Next::Lines(lines) => {
                    let count = lines.len() as u64;
                    if self.sender.send(lines).await.is_err() {
                        return Ok(Over::Gone);
                    }
                    self.sent.fetch_add(count, Ordering::Relaxed);
                }
                Next::Over => return Ok(self.closed().await),
                Next::NotYet => {
                    tokio::select! {
                        () = tail.grown() => {}
                        () = sleep(BEAT) => {
                            if self.beat().await.is_err() {
                                return Ok(Over::Gone);
                            }
                        }
                        _ = self.live.ended(), if closing.is_none() => {
                            closing = Some(Instant::now() + CLOSING);
                        }
                        // A recorder that failed closes nothing.
                        () = sleep_until(closing.unwrap_or_else(Instant::now)), if closing.is_some() => {
                            return Ok(Over::Session(self.live.ended().await));
                        }
                    }
                }
            }
        }
    }

    /// The channel to show, or the session's end before there was one; `None` when the watcher left.
    async fn terminal(&self) -> Option<Result<u32, End>> {
        if let Some(channel) = self.channel.get() {
            return Some(Ok(*channel));
        }
        loop {
            tokio::select! {
                channel = self.screens.first() => return Some(Ok(channel)),
                end = self.live.ended() => return Some(Err(end)),
                () = sleep(BEAT) => self.beat().await.ok()?,
            }
        }
    }

    async fn beat(&self) -> Result<(), mpsc::error::SendError<Bytes>> {
        self.sender.send(Bytes::from_static(b"\n")).await
    }

    /// The terminal is closed: most often the session is about to be.
    async fn closed(&self) -> Over {
        match timeout(LEAVING, self.live.ended()).await {
            Ok(end) => Over::Session(end),
            Err(_) => Over::Terminal,
        }
    }
}

/// Waits until a watcher may not watch any more.
async fn lost_right(ctx: &Ctx, caller: &LastingCaller, id: &SessionId) -> Over {
    let mut seen = Instant::now();
    loop {
        sleep(AGAIN).await;
        match still(ctx, caller, id).await {
            Ok(()) => seen = Instant::now(),
            // A failure of ours; it is not for ever taken for a yes.
            Err(problem) if problem.body().status >= 500 && seen.elapsed() < BLIND => {}
            Err(problem) if problem.body().status == 401 => return Over::SignIn,
            Err(_) => return Over::Right,
        }
    }
}

async fn still(ctx: &Ctx, caller: &LastingCaller, id: &SessionId) -> Result<(), Problem> {
    let person = caller.again(ctx).await?;
    let (_, facts) = readable(ctx, &person, id).await?;
    if ctx.permits(&person, Action::Watch, &Resource::Session(&facts)) { Ok(()) } else { Err(no_such(id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_every_place_of_those_who_watch() {
        let watchers = Watchers::default();
        let person = |n: usize| format!("P-0000{n:04}").parse::<PersonId>().unwrap();
        let mut seats: Vec<_> = (0..PER_PERSON).map(|_| watchers.take(&person(0)).unwrap()).collect();
        assert!(watchers.take(&person(0)).is_none(), "one person");
        seats.pop();
        seats.push(watchers.take(&person(0)).unwrap());
        for n in 1..IN_ALL / PER_PERSON {
            seats.extend((0..PER_PERSON).map(|_| watchers.take(&person(n)).unwrap()));
        }
        assert!(watchers.take(&person(99)).is_none(), "all together");
        seats.clear();
        assert!(watchers.locked().is_empty());
    }
}
