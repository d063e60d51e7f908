//! Waiting for people to answer a request.

use super::Context;
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::ui::waiting::Waiting;
use crate::ui::words;
use daypass_protocol::api::{GrantState, Request, RequestState};
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long the broker may hold one question.
const POLL: &str = "25";
/// A broker that restarts, or a network that changes, is no reason to give up at once.
const MOST_FAILURES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(2);

/// Waits until the request is answered, and says so on a live line. The answer itself is for
/// [`granted`] to judge.
pub async fn until_answered(
    context: &Context,
    client: &Client,
    request: Request,
) -> Result<Request, Failure> {
    if request.state != RequestState::Pending {
        return Ok(request);
    }
    *context.waiting.borrow_mut() = Some(request.id.clone());
    let latest = RefCell::new(request);
    let unreachable = Cell::new(false);
    let answered = poll(client, &latest, &unreachable);
    tokio::pin!(answered);

    let mut line = Waiting::new(context.ui.clone(), clock::now());
    // Said before the first answer can come: who waits should learn for whom.
    line.draw(&latest.borrow(), clock::now());
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let outcome = loop {
        tokio::select! {
            outcome = &mut answered => break outcome,
            _ = second.tick() => {
                if unreachable.take() {
                    line.note(&words::trying_again(client.base()));
                }
                line.draw(&latest.borrow(), clock::now());
            }
        }
    };
    // An interruption keeps the note about the request: the function does not come this far.
    *context.waiting.borrow_mut() = None;
    outcome
}

async fn poll(
    client: &Client,
    latest: &RefCell<Request>,
    unreachable: &Cell<bool>,
) -> Result<Request, Failure> {
    let path = format!("/v1/requests/{}", latest.borrow().id);
    let query = [("wait_s", POLL.to_owned()), ("state", "pending".to_owned())];
    let mut failures = 0;
    loop {
        match client.get::<Request>(&path, &query).await {
            Ok(request) if request.state != RequestState::Pending => return Ok(request),
            Ok(request) => {
                failures = 0;
                latest.replace(request);
            }
            Err(failure) if failure.is_passing() && failures < MOST_FAILURES => {
                unreachable.set(failures == 0);
                failures += 1;
                sleep(PAUSE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The request, if it is a grant that can be used now.
pub fn granted(request: Request) -> Result<Request, Failure> {
    match (request.state, &request.grant) {
        (RequestState::Granted, Some(grant)) if grant.state == GrantState::Live => Ok(request),
        (RequestState::Granted, _) => Err(Failure::GrantOver(request.id)),
        (RequestState::Denied, _) => Err(Failure::Denied(Box::new(request))),
        (RequestState::Cancelled, _) => Err(Failure::Cancelled(request.id)),
        // Pending is what waiting excludes.
        (RequestState::Lapsed | RequestState::Pending, _) => Err(Failure::Lapsed(request.id)),
    }
}
