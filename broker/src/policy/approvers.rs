//! Whose approval would help: found by asking Cedar, never by reading policies.
//!
//! Each team that a policy names is tried with an imagined member who is in that team alone, signed in a
//! moment ago with a second factor. Approvals are taken to help and not to harm, so teams are only tried
//! one by one after all of them together made a difference.

use super::question::{self, Principal, Verdict};
use super::{Action, Approvals, ConnectAsk, Policies, Resource};
use daypass_protocol::time::Timestamp;
use std::collections::BTreeSet;

/// Most further approvals that are tried.
const MOST_APPROVALS: u32 = 5;
/// Most different teams that one approval of each is tried for.
const MOST_TEAMS: usize = 3;
/// No person's id has this form.
const IMAGINED: &str = "an imagined approver";

pub(super) enum Found {
    Approvable {
        /// The policies that would permit it then.
        by: Vec<String>,
        teams: Vec<String>,
        anybody: bool,
        /// In all.
        approvals_needed: u32,
    },
    /// More approvals would help, but those who may approve cannot give them.
    Nobody,
    /// No approvals help; the policies that forbid it even then.
    Hopeless(Vec<String>),
    /// The question failed.
    Failed(String),
}

/// One approver to imagine: a member of a team, or of none.
type Candidate = Option<String>;

pub(super) fn search(policies: &Policies, ask: &ConnectAsk, approvals: &Approvals, now: Timestamp) -> Found {
    let favourable = approvals.and(MOST_APPROVALS, policies.teams());
    match question::connect(policies, ask, &favourable, now) {
        Verdict::Allowed(_) => {}
        Verdict::Refused(forbidding) => return Found::Hopeless(forbidding),
        Verdict::Failed(cause) => return Found::Failed(cause),
    }
    let candidates = match candidates(policies, ask, now) {
        Ok(candidates) => candidates,
        Err(cause) => return Found::Failed(cause),
    };
    let everyone: Vec<&Candidate> = candidates.iter().collect();
    if everyone.is_empty() {
        return Found::Nobody;
    }
    let with = |more: u32, teams: &[&Candidate]| {
        let given = approvals.and(more, teams.iter().copied().flatten());
        question::connect(policies, ask, &given, now)
    };
    for more in 1..=MOST_APPROVALS {
        match with(more, &everyone) {
            Verdict::Failed(cause) => return Found::Failed(cause),
            Verdict::Refused(_) => continue,
            Verdict::Allowed(_) => {}
        }
        let mut by = BTreeSet::new();
        let mut helping: BTreeSet<&Candidate> = BTreeSet::new();
        let people = usize::try_from(more).unwrap_or(MOST_TEAMS);
        for size in 1..=people.min(MOST_TEAMS) {
            let mut sufficient: Option<Vec<&Candidate>> = None;
            for teams in combinations(&everyone, size) {
                if let Verdict::Allowed(policies) = with(more, &teams) {
                    by.extend(policies);
                    helping.extend(&teams);
                    sufficient.get_or_insert(teams);
                }
            }
            let Some(sufficient) = sufficient else { continue };
            // There is room for one more person: whoever does not spoil it counts.
            if size < people {
                for one in &everyone {
                    let wider: Vec<&Candidate> =
                        sufficient.iter().copied().chain(std::iter::once(*one)).collect();
                    if let Verdict::Allowed(policies) = with(more, &wider) {
                        by.extend(policies);
                        helping.insert(one);
                    }
                }
            }
            break;
        }
        if !helping.is_empty() {
            return Found::Approvable {
                by: policies.ids().filter(|id| by.contains(*id)).map(str::to_owned).collect(),
                anybody: helping.contains(&None),
                teams: helping.into_iter().flatten().cloned().collect(),
                approvals_needed: approvals.count().saturating_add(more),
            };
        }
    }
    Found::Nobody
}

/// Who may approve this ask, one of each team.
fn candidates(policies: &Policies, ask: &ConnectAsk, now: Timestamp) -> Result<Vec<Candidate>, String> {
    let request = ask.as_request();
    let mut found = Vec::new();
    for candidate in policies.teams().iter().cloned().map(Some).chain(std::iter::once(None)) {
        let who =
            Principal { id: IMAGINED, email: "", teams: candidate.as_slice(), mfa: true, signed_in_at: now };
        let resource = Resource::Request(&request);
        match question::permitted(policies, &who, Action::Approve.as_str(), &resource, now) {
            Verdict::Allowed(_) => found.push(candidate),
            Verdict::Refused(_) => {}
            Verdict::Failed(cause) => return Err(cause),
        }
    }
    Ok(found)
}

/// Every choice of `size` of `items`, in order.
fn combinations<'a, T>(items: &[&'a T], size: usize) -> Vec<Vec<&'a T>> {
    let Some(smaller) = size.checked_sub(1) else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for (i, item) in items.iter().enumerate() {
        for mut rest in combinations(&items[i + 1..], smaller) {
            rest.insert(0, item);
            all.push(rest);
        }
    }
    all
}
