//! What becomes due by itself: requests that nobody answered, windows that are over, recordings that were
//! kept long enough, and sessions that a change elsewhere ends.

use crate::approval;
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::policy::{Permission, Subject};
use crate::request::{self, store};
use crate::session::End;
use daypass_protocol::api::{DeviceState, EndReason};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

const EVERY: Duration = Duration::from_secs(1);
const REMOVAL_EVERY: Duration = Duration::from_secs(10);

/// Runs until the broker stops. What ends sessions waits for nothing else.
pub async fn run(ctx: Ctx) {
    let _ = tokio::join!(
        ctx.stopping.run_until_cancelled(on_changes(&ctx)),
        ctx.stopping.run_until_cancelled(on_time(&ctx)),
        ctx.stopping.run_until_cancelled(on_age(&ctx)),
    );
}

async fn on_changes(ctx: &Ctx) {
    let mut changes = ctx.tunnel_server.changes().subscribe();
    loop {
        match changes.recv().await {
            Ok(change) => device_changed(ctx, &change.device, change.state, &change.reason),
            Err(RecvError::Lagged(_)) => {
                ctx.sessions.all().iter().for_each(|live| live.judge_again());
                judge_sessions(ctx).await;
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn on_time(ctx: &Ctx) {
    let mut tick = every(EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = due(ctx).await {
            tracing::error!(%error, "what is due could not be done; it is tried again");
        }
        // A session that began while the policies changed, or that could not be judged then.
        judge_sessions(ctx).await;
    }
}

async fn on_age(ctx: &Ctx) {
    let mut tick = every(REMOVAL_EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = ctx.recordings.remove_old(ctx.config.recordings.keep).await {
            tracing::error!(%error, "old recordings could not be removed; it is tried again");
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick
}

fn device_changed(ctx: &Ctx, device: &daypass_protocol::ids::DeviceId, state: DeviceState, reason: &str) {
    if !matches!(state, DeviceState::Active | DeviceState::InRepair) {
        let end = End::with(EndReason::DeviceSuspended, reason);
        ctx.sessions.end_where(|live| live.device == *device, &end);
    }
}

async fn due(ctx: &Ctx) -> Result<(), sqlx::Error> {
    let now = ctx.clock.now();
    let (overdue, expired) = {
        let mut conn = ctx.db.pool().acquire().await?;
        (store::overdue(&mut conn, now).await?, store::expired_grants(&mut conn, now).await?)
    };
    for id in overdue {
        let mut tx = ctx.db.begin().await?;
        if let Some(recorded) = request::lapse(&mut tx, &id, now).await? {
            tx.commit(recorded).await?;
            ctx.request_changed(&id);
        }
    }
    for id in expired {
        let mut tx = ctx.db.begin().await?;
        if let Some(recorded) = approval::expire(&mut tx, &id, now).await? {
            tx.commit(recorded).await?;
            ctx.request_changed(&id);
        }
    }
    // A grant that another broker on the same database ended ends its sessions here too.
    for live in ctx.sessions.all() {
        let mut conn = ctx.db.pool().acquire().await?;
        if let Some(grant) = store::grant(&mut conn, &live.grant).await?
            && !grant.is_live(now)
        {
            let reason = match grant.state {
                daypass_protocol::api::GrantState::Revoked | daypass_protocol::api::GrantState::Closed => {
                    EndReason::Revoked
                }
                _ => EndReason::Expired,
            };
            live.end(End { reason, detail: grant.ended_by });
        }
    }
    Ok(())
}

/// Asks the policies in force about every running session that they have not allowed yet, and ends those that
/// they do not allow. One that cannot be judged now is judged the next time.
pub async fn judge_sessions(ctx: &Ctx) {
    let now = ctx.clock.now();
    let policies = ctx.policies.current();
    for live in ctx.sessions.all().into_iter().filter(|live| !live.is_allowed_by(policies.hash())) {
        let judged = async {
            let mut conn = ctx.db.pool().acquire().await?;
            let grant = store::grant(&mut conn, &live.grant).await?.ok_or(sqlx::Error::RowNotFound)?;
            let subject: Subject =
                store::subject(&mut conn, &live.person).await?.ok_or(sqlx::Error::RowNotFound)?;
            drop(conn);
            crate::session::still_allowed(ctx, &policies, subject, &grant, now).await
        };
        match judged.await {
            Ok(Permission::Permitted { .. }) => live.set_allowed_by(policies.hash()),
            Ok(Permission::Refused(refusal)) => {
                live.end(End::with(EndReason::PolicyChanged, refusal.reason));
            }
            // Nothing is left that could allow it.
            Err(sqlx::Error::RowNotFound) => {
                live.end(End::with(
                    EndReason::PolicyChanged,
                    "what it was granted for is not there any more",
                ));
            }
            Err(error) => tracing::error!(%error, session = %live.id, "a session could not be judged again"),
        }
    }
}

/// Loads the policies again; a set that does not validate is refused whole and the old one stays.
pub async fn reload_policies(ctx: &Ctx) {
    let dir = &ctx.config.policies_dir;
    let event = match ctx.policies.reload(dir) {
        Ok(reloaded) => {
            tracing::info!(policy_set = reloaded.after, changed = reloaded.changed(), "policies were loaded");
            Event::new(Kind::PolicyLoaded, audit::Actor::Broker)
                .detail(serde_json::json!({ "before": reloaded.before, "after": reloaded.after }))
        }
        Err(errors) => {
            tracing::error!(%errors, "the policies do not load; those in force stay");
            Event::new(Kind::PolicyRefused, audit::Actor::Broker)
                .detail(serde_json::json!({ "errors": errors.to_string() }))
        }
    };
    if let Err(error) = audit::note(&ctx.db, ctx.clock.now(), event).await {
        tracing::error!(%error, "a change of policy could not be entered in the audit log");
    }
    judge_sessions(ctx).await;
}
