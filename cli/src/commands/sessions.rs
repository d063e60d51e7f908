//! `daypass sessions` and `daypass end`.

use super::Context;
use crate::args::SessionsArgs;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{Session, WithReason};
use daypass_protocol::ids::SessionId;

pub async fn run(context: &Context, args: SessionsArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    query.extend(args.live.then(|| ("live", "true".to_owned())));
    query.extend(args.device.map(|device| ("device", device.to_string())));
    query.extend(args.person.map(|person| ("person", person)));
    let listed = context.client()?.list::<Session>("/v1/sessions", &query, args.limit).await?;
    context.ui.sessions(&listed.items)?;
    if listed.more {
        context.ui.note(words::MORE);
    }
    Ok(())
}

pub async fn end(context: &Context, session: &SessionId, reason: Option<String>) -> Result<(), Failure> {
    let reason = match reason {
        Some(reason) => reason,
        None if context.ui.can_ask() => context.ask(words::ASK_END_REASON).await?.unwrap_or_default(),
        None => String::new(),
    };
    let reason = if reason.is_empty() { words::ENDED_WITHOUT_REASON.to_owned() } else { reason };
    let path = format!("/v1/sessions/{session}/end");
    let session: Session = context.client()?.post(&path, &WithReason { reason }).await?;
    context.ui.session(&session)
}
