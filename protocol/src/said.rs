//! Sentences about a request that more than one program says: the command line, and the gateway at the
//! terminal of somebody who came without a grant.

use crate::api::{Answer, Request, Verdict};
use crate::duration::spoken;
use crate::ids::RequestId;
use crate::text::made_visible;

/// Longest text of somebody else's that stands in a sentence, in bytes.
const MAX_SHOWN: usize = 4096;

fn shown(text: &str) -> String {
    made_visible(text, MAX_SHOWN)
}

/// What a request waits for: who can answer, and why it needs them.
pub fn waits_for(request: &Request) -> String {
    let who = match request.approver_teams.as_slice() {
        [] => "for an approval".to_owned(),
        [one] => format!("for somebody of {}", shown(one)),
        teams => format!("for somebody of {}", shown(&teams.join(", "))),
    };
    let approved = request.answers.iter().filter(|answer| answer.verdict == Verdict::Approve).count();
    let so_far = if approved > 0 { format!(", {approved} approved so far") } else { String::new() };
    let why =
        if request.why.is_empty() { String::new() } else { format!(" ({})", shown(&request.why.join("; "))) };
    let what = request.command.as_deref().map(|command| format!(" to run `{}`", shown(command)));
    format!("{}{} waits {who}{so_far}{why}", request.id, what.unwrap_or_default())
}

/// Short enough not to wrap.
pub fn waited(waited_s: u64, left_s: u64) -> String {
    format!("waiting {} · lapses in {}", spoken(waited_s), spoken(left_s))
}

/// Somebody who asks again joins what they asked before: with the reason of then.
pub fn joins_pending(id: &RequestId, reason: &str) -> String {
    format!(
        "{id} for this is already waiting, for the reason \"{}\". To ask anew: daypass cancel {id}",
        shown(reason)
    )
}

/// What was granted: where it is less than was asked for, that too, and what the approvers said.
pub fn granted(request: &Request) -> String {
    let Some(grant) = &request.grant else { return format!("{} is granted.", request.id) };
    let window = grant.starts_at.until(grant.ends_at).as_secs();
    // Certificates end at whole seconds.
    let shorter = if window + 1 < request.duration_s {
        format!(" instead of {}", spoken(request.duration_s))
    } else {
        String::new()
    };
    let narrower = if grant.channels == request.channels {
        String::new()
    } else {
        format!(", with {} only", grant.channels)
    };
    let mut said = format!("{} is granted for {}{shorter}{narrower}.", request.id, spoken(window));
    for given in &request.answers {
        if given.verdict == Verdict::Approve && given.comment.is_some() {
            said = format!("{said} It was {}.", answer(given));
        }
    }
    said
}

/// How somebody answered.
pub fn answer(answer: &Answer) -> String {
    let verb = match answer.verdict {
        Verdict::Approve => "approved",
        Verdict::Deny => "denied",
    };
    let comment = answer.comment.as_deref().map(|text| format!(": {}", shown(text))).unwrap_or_default();
    format!("{verb} by {}{comment}", shown(&answer.by.email))
}
