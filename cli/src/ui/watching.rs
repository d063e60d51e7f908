//! What is said to somebody who watches a session.

use super::clean;
use super::show::end_reason;
use daypass_protocol::api::EndReason;
use daypass_protocol::ids::SessionId;

pub fn watching(session: &SessionId) -> String {
    format!("Watching {session}. Ctrl-C ends the watching, not the session.")
}

pub fn session_ended(session: &SessionId, reason: Option<EndReason>, detail: Option<&str>) -> String {
    let reason = reason.map_or("ended", end_reason);
    let why = detail.map_or_else(String::new, |detail| format!(", {}", clean(detail)));
    format!("{session} is over: {reason}{why}.")
}

pub fn replay(session: &SessionId) -> String {
    format!("`daypass play {session}` replays it")
}

pub fn terminal_closed(session: &SessionId) -> String {
    format!("The terminal was closed; {session} goes on.")
}
