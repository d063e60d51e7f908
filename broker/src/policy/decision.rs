//! May this person open sessions like this? Yes, not before somebody approves, or no.

use super::question::{self, Verdict};
use super::{Approvals, ConnectAsk, Permission, Policies, approvers, suggestion};
use daypass_protocol::channel::ChannelSet;
use daypass_protocol::ids::Login;
use daypass_protocol::time::Timestamp;
use std::fmt;
use std::time::Duration;

/// The answer to an ask, with what comes with it.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Policy permits it with the approvals at hand.
    Allow(Terms),
    /// Policy would permit it with more approvals, and there are teams that can give them.
    NeedsApproval(ApprovalTerms),
    /// Policy refuses it, whoever approves.
    Deny(Refusal),
}

/// What may be granted: what was asked for, no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub login: Login,
    pub channels: ChannelSet,
    pub duration: Duration,
    /// Ids of the policies that permitted it.
    pub policies: Vec<String>,
}

/// What may be granted once it is approved, and what is missing until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalTerms {
    /// What may be granted, under the policies that would permit it.
    pub terms: Terms,
    /// Why policy asks people, in its own sentences.
    pub why: Vec<String>,
    /// Teams whose members may approve this, and whose approval counts towards it.
    pub approver_teams: Vec<String>,
    /// Whether somebody in none of the teams that policy names may approve as well.
    pub anybody: bool,
    /// Approvals that it takes in all, those at hand included.
    pub approvals_needed: u32,
}

/// Why not, and what instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the person who asked.
    pub reason: String,
    /// Ids of the policies that refused; none where nothing permits it.
    pub policies: Vec<String>,
    /// Changes with which it would be allowed, or could be approved; each was tried.
    pub would_allow: Vec<String>,
    /// For the log: set when the question failed instead of being answered.
    pub cause: Option<String>,
}

impl Refusal {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), policies: Vec::new(), would_allow: Vec::new(), cause: None }
    }

    /// By the policies that forbid it, in their own words; or because none permits it.
    pub(super) fn by(policies: &Policies, forbidding: Vec<String>, what: &str) -> Self {
        if forbidding.is_empty() {
            return Self::new(format!("No policy permits {what}."));
        }
        let words: Vec<&str> = forbidding.iter().filter_map(|id| policies.description(id)).collect();
        let reason = words.join(" ");
        Self { policies: forbidding, ..Self::new(reason) }
    }

    /// The question failed: fail closed, and say so.
    pub(super) fn failed(cause: String) -> Self {
        Self {
            cause: Some(cause),
            ..Self::new(
                "Policy could not be evaluated, so this is refused. Tell whoever writes the policies.",
            )
        }
    }
}

/// Decides an ask with the approvals at hand.
///
/// Cedar is asked with these approvals first. If that is not enough, it is asked with the most favourable
/// approvals that people could still give; if even those do not help, the ask is refused at once.
pub fn evaluate(policies: &Policies, ask: &ConnectAsk, approvals: &Approvals, now: Timestamp) -> Decision {
    match decide(policies, ask, approvals, now) {
        Decision::Deny(mut refusal) if refusal.cause.is_none() => {
            refusal.would_allow = suggestion::would_allow(policies, ask, approvals, now);
            Decision::Deny(refusal)
        }
        decision => decision,
    }
}

/// Asks once whether an ask is allowed with the approvals it has: before a session opens, and about running
/// sessions when something has changed. Anything but a plain yes is a refusal.
pub fn holds(policies: &Policies, ask: &ConnectAsk, approvals: &Approvals, now: Timestamp) -> Permission {
    match question::connect(policies, ask, approvals, now) {
        Verdict::Allowed(by) if is_answerable(ask) => Permission::Permitted { by },
        Verdict::Allowed(_) => Permission::Refused(nothing_asked()),
        Verdict::Refused(forbidding) => Permission::Refused(Refusal::by(policies, forbidding, &spelled(ask))),
        Verdict::Failed(cause) => Permission::Refused(Refusal::failed(cause)),
    }
}

/// [`evaluate`] without the search for what would be allowed instead.
pub(super) fn decide(
    policies: &Policies,
    ask: &ConnectAsk,
    approvals: &Approvals,
    now: Timestamp,
) -> Decision {
    if !is_answerable(ask) {
        return Decision::Deny(nothing_asked());
    }
    let blocking = match question::connect(policies, ask, approvals, now) {
        Verdict::Allowed(by) => return Decision::Allow(terms(ask, by)),
        Verdict::Failed(cause) => return Decision::Deny(Refusal::failed(cause)),
        Verdict::Refused(forbidding) => forbidding,
    };
    match approvers::search(policies, ask, approvals, now) {
        approvers::Found::Approvable { by, teams, anybody, approvals_needed } => {
            let why = blocking.iter().chain(&by).filter_map(|id| policies.description(id)).map(str::to_owned);
            let why = why.collect();
            let terms = terms(ask, by);
            Decision::NeedsApproval(ApprovalTerms {
                terms,
                why,
                approver_teams: teams,
                anybody,
                approvals_needed,
            })
        }
        approvers::Found::Nobody => Decision::Deny(Refusal {
            policies: blocking,
            ..Refusal::new(format!(
                "Policy asks for approval of {}, and nobody may give the approvals it takes.",
                spelled(ask)
            ))
        }),
        approvers::Found::Hopeless(forbidding) => {
            Decision::Deny(Refusal::by(policies, forbidding, &spelled(ask)))
        }
        approvers::Found::Failed(cause) => Decision::Deny(Refusal::failed(cause)),
    }
}

/// An empty set of channels is contained in every set, and no time is shorter than every limit: policies
/// written as limits would permit both.
fn is_answerable(ask: &ConnectAsk) -> bool {
    !ask.channels.is_empty() && !ask.duration.is_zero()
}

fn nothing_asked() -> Refusal {
    Refusal::new("Ask for at least one channel and for some time.")
}

fn terms(ask: &ConnectAsk, policies: Vec<String>) -> Terms {
    Terms { login: ask.login.clone(), channels: ask.channels.clone(), duration: ask.duration, policies }
}

/// An ask in a few words.
fn spelled(ask: &ConnectAsk) -> String {
    let what = match &ask.command {
        Some(command) => format!("the command {command:?}"),
        None => ask.channels.to_string(),
    };
    format!("{what} on {} as {} for {}", ask.device.id, ask.login, suggestion::spoken(ask.duration))
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(terms) => write!(f, "allowed: {terms}"),
            Self::NeedsApproval(asked) => write!(f, "{asked}"),
            Self::Deny(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = suggestion::spoken(self.duration);
        write!(f, "{} as {} for {span}", self.channels, self.login)?;
        write!(f, "\n  by: {}", self.policies.join(", "))
    }
}

impl fmt::Display for ApprovalTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut who = self.approver_teams.clone();
        if self.anybody {
            who.push("anybody else".to_owned());
        }
        write!(f, "needs approval: {}", self.terms)?;
        write!(f, "\n  approvals needed: {}, from: {}", self.approvals_needed, who.join(", "))?;
        self.why.iter().try_for_each(|sentence| write!(f, "\n  why: {sentence}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.reason)?;
        if !self.policies.is_empty() {
            write!(f, "\n  by: {}", self.policies.join(", "))?;
        }
        self.would_allow.iter().try_for_each(|change| write!(f, "\n  would be possible: {change}"))?;
        self.cause.iter().try_for_each(|cause| write!(f, "\n  cause: {cause}"))
    }
}
