//! Where people ask, by whichever way they come: over HTTP, or at the terminal of an SSH connection.

use super::{Limits, SubmitError, submit};
use crate::approval::Outcome;
use crate::broker::Ctx;
use crate::login::VerifiedPerson;
use daypass_protocol::api::Ask;
use daypass_protocol::ids::RequestId;
use std::time::Duration;
use tokio::sync::broadcast;

/// Stores the ask, decides it as far as that goes without people, and tells everybody who waits.
pub async fn ask(ctx: &Ctx, person: &VerifiedPerson, ask: Ask) -> Result<(RequestId, Outcome), SubmitError> {
    let limits = Limits {
        lapse_after: ctx.config.requests.lapse_after,
        pending_per_person: ctx.config.requests.pending_per_person,
        own_hosts: own_hosts(ctx),
    };
    let now = ctx.clock.now();
    let mut tx = ctx.db.begin().await?;
    let (id, outcome, recorded) = submit(&mut tx, person, ask, &ctx.policies.current(), limits, now).await?;
    tx.commit(recorded).await?;
    ctx.request_changed(&id);
    metrics::counter!("daypass_requests_total").increment(1);
    Ok((id, outcome))
}

/// The broker's own names and addresses, as far as its configuration says them.
fn own_hosts(ctx: &Ctx) -> Vec<String> {
    let url = ctx.config.https.url.host_str().unwrap_or_default();
    let url = url.trim_start_matches('[').trim_end_matches(']').to_owned();
    let listening = [ctx.config.https.listen.ip(), ctx.config.ssh.listen.ip()].map(|ip| ip.to_string());
    [url, ctx.config.ssh.host.clone()].into_iter().chain(listening).collect()
}

/// At least every few seconds somebody who waits looks again: another broker may share the database.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Changes of one request. Made before the first look at it, so that none falls between.
#[derive(Debug)]
pub struct Changes {
    id: RequestId,
    all: broadcast::Receiver<RequestId>,
}

impl Changes {
    pub fn of(ctx: &Ctx, id: &RequestId) -> Self {
        Self { id: id.clone(), all: ctx.changed_requests.subscribe() }
    }

    /// Waits until the request may have changed.
    pub async fn next(&mut self) {
        let changed = async {
            loop {
                match self.all.recv().await {
                    Ok(changed) if changed != self.id => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}
