//! What would have been allowed instead: each change is tried before it is said.

use super::decision::decide;
use super::{Action, Approvals, ConnectAsk, Decision, Policies, permission};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::Login;
use daypass_protocol::time::Timestamp;
use std::cell::Cell;
use std::time::Duration;

/// Windows that are tried, in minutes, longest first.
const WINDOWS: [u64; 10] = [1440, 720, 480, 240, 120, 60, 30, 15, 10, 5];
/// Most suggestions that are made.
const MOST: usize = 6;
/// Most changes that are tried: a refusal stays cheap whatever was asked.
const MOST_TRIED: u32 = 100;

/// One thing that the asker could do differently.
#[derive(Clone, Debug)]
enum Change {
    Shorter(Duration),
    Channels(ChannelSet),
    Login(Login),
    Ticket,
    Reason,
    SignInAgain,
    SecondFactor,
}

impl Change {
    fn apply(&self, ask: &ConnectAsk, now: Timestamp) -> ConnectAsk {
        let mut ask = ask.clone();
        match self {
            Self::Shorter(duration) => ask.duration = *duration,
            Self::Channels(channels) => ask.channels = channels.clone(),
            Self::Login(login) => ask.login = login.clone(),
            Self::Ticket => ask.ticket = Some("TICKET-1".to_owned()),
            Self::Reason => ask.reason = "a reason ".repeat(20),
            Self::SignInAgain => ask.subject.signed_in_at = now,
            Self::SecondFactor => ask.subject.mfa = true,
        }
        ask
    }

    fn words(&self) -> String {
        match self {
            Self::Shorter(duration) => format!("for {} or less", spoken(*duration)),
            Self::Channels(channels) => format!("with {channels} only"),
            Self::Login(login) => format!("as {login}"),
            Self::Ticket => "with a ticket".to_owned(),
            Self::Reason => "with a reason".to_owned(),
            Self::SignInAgain => "after signing in again".to_owned(),
            Self::SecondFactor => "after signing in with a second factor".to_owned(),
        }
    }
}

/// Changes with which a refused ask would be allowed or could be approved; single ones, or pairs where no
/// single one helps.
pub(super) fn would_allow(
    policies: &Policies,
    ask: &ConnectAsk,
    approvals: &Approvals,
    now: Timestamp,
) -> Vec<String> {
    // Nobody's ask gets better by changing it where no policy speaks of them.
    if !permission::may_at_all(policies, &ask.subject, now).contains(&Action::Connect) {
        return Vec::new();
    }
    let tried = Cell::new(0);
    let outcome = |changes: &[&Change]| {
        if tried.replace(tried.get() + 1) >= MOST_TRIED {
            return None;
        }
        let changed = changes.iter().fold(ask.clone(), |ask, change| change.apply(&ask, now));
        match decide(policies, &changed, approvals, now) {
            Decision::Allow(_) => Some(""),
            Decision::NeedsApproval(_) => Some(", with approval"),
            Decision::Deny(_) => None,
        }
    };
    let kinds = kinds(policies, ask, now);
    let mut found = Vec::new();
    for kind in &kinds {
        found.extend(best(kind, |change| outcome(&[change]).map(|how| format!("{}{how}", change.words()))));
    }
    if found.is_empty() {
        for (i, first) in kinds.iter().enumerate() {
            for second in &kinds[i + 1..] {
                found.extend(best(first, |one| {
                    best(second, |other| {
                        outcome(&[one, other]).map(|how| format!("{} {}{how}", one.words(), other.words()))
                    })
                    .into_iter()
                    .next()
                }));
            }
        }
    }
    found.truncate(MOST);
    found
}

/// Changes of one kind, the least intrusive first, in ranks: within a rank all that help are said, and
/// later ranks only if none did.
type Kind = Vec<Vec<Change>>;

fn best(kind: &Kind, try_one: impl Fn(&Change) -> Option<String>) -> Vec<String> {
    kind.iter()
        .map(|rank| rank.iter().filter_map(&try_one).collect::<Vec<_>>())
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn kinds(policies: &Policies, ask: &ConnectAsk, now: Timestamp) -> Vec<Kind> {
    let windows = WINDOWS.into_iter().map(Duration::from_mins);
    let shorter = windows.filter(|window| *window < ask.duration).map(|w| vec![Change::Shorter(w)]).collect();

    let asked: Vec<ChannelKind> = ask.channels.iter().collect();
    let fewer = (1..asked.len())
        .rev()
        .map(|size| subsets(&asked, size).into_iter().map(Change::Channels).collect())
        .collect();

    let others = policies.logins().iter().filter(|login| **login != ask.login).cloned();
    let logins = vec![others.map(Change::Login).collect()];

    let mut kinds: Vec<Kind> = vec![shorter, fewer, logins];
    if ask.reason.trim().is_empty() {
        kinds.push(vec![vec![Change::Reason]]);
    }
    if ask.ticket.as_deref().is_none_or(|ticket| ticket.trim().is_empty()) {
        kinds.push(vec![vec![Change::Ticket]]);
    }
    if ask.subject.signed_in_at < now {
        kinds.push(vec![vec![Change::SignInAgain]]);
    }
    if !ask.subject.mfa {
        kinds.push(vec![vec![Change::SecondFactor]]);
    }
    kinds
}

fn subsets(of: &[ChannelKind], size: usize) -> Vec<ChannelSet> {
    (0u32..1 << of.len())
        .filter(|bits| bits.count_ones() as usize == size)
        .map(|bits| {
            of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, kind)| *kind).collect()
        })
        .collect()
}

/// A length of time as people say it: `4 h`, `1 h 30 min`, `45 s`.
pub(super) fn spoken(span: Duration) -> String {
    let s = span.as_secs();
    let parts: Vec<String> = [(s / 3600, "h"), (s / 60 % 60, "min"), (s % 60, "s")]
        .into_iter()
        .filter(|(amount, _)| *amount > 0)
        .map(|(amount, unit)| format!("{amount} {unit}"))
        .collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}
