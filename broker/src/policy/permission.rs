//! Every other action: permitted or refused.

use super::question::{self, Principal, Verdict, uid};
use super::{About, Action, Policies, Refusal, Resource, Subject, separation};
use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint,
};
use daypass_protocol::time::Timestamp;

/// The answer to a question about an action.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// With the ids of the policies that permitted it.
    Permitted {
        by: Vec<String>,
    },
    Refused(Refusal),
}

impl Permission {
    pub fn is_permitted(&self) -> bool {
        matches!(self, Self::Permitted { .. })
    }
}

/// Whether somebody may do something to something.
///
/// Answering one's own request and reviewing one's own session are refused here, before policy is asked.
pub fn may(
    policies: &Policies,
    subject: &Subject,
    action: Action,
    resource: &Resource<'_>,
    now: Timestamp,
) -> Permission {
    match (action, resource) {
        (Action::Connect, _) => {
            return Permission::Refused(Refusal::new(
                "Whether somebody may connect is decided on what they ask for.",
            ));
        }
        (Action::Approve, Resource::Request(request))
            if separation::approver_is_requester(&subject.id, &request.requester) =>
        {
            return Permission::Refused(Refusal::new("Nobody answers their own request."));
        }
        (Action::Review, Resource::Session(session))
            if separation::reviewer_is_operator(&subject.id, &session.person) =>
        {
            return Permission::Refused(Refusal::new("Nobody reviews their own session."));
        }
        _ => {}
    }
    match question::permitted(policies, &Principal::from(subject), action.as_str(), resource, now) {
        Verdict::Allowed(by) => Permission::Permitted { by },
        Verdict::Refused(forbidding) => {
            let what = format!("{} to {}", subject.email, action.as_str().replace('_', " "));
            Permission::Refused(Refusal::by(policies, forbidding, &what))
        }
        Verdict::Failed(cause) => Permission::Refused(Refusal::failed(cause)),
    }
}

/// What somebody may do at all, for a client to know which rooms to show. It opens none of them.
///
/// Actions on the fleet are decided. For an action on a device, a request or a session there is no resource
/// to ask about yet, so it is listed where the scope of some permit (its principal, action and kind of
/// resource, without its conditions) fits, and no forbid without conditions fits too.
pub fn may_at_all(policies: &Policies, subject: &Subject, now: Timestamp) -> Vec<Action> {
    let fits = |action: Action, effect: Effect| {
        policies.set().policies().any(|policy| {
            policy.effect() == effect
                && principal_fits(policies, policy, subject)
                && action_fits(policies, policy, action)
                && resource_fits(policies, policy, action.about(), effect)
                && (effect == Effect::Permit || !policy.has_non_scope_constraint())
        })
    };
    Action::ALL
        .iter()
        .copied()
        .filter(|action| match action.about() {
            About::Fleet => may(policies, subject, *action, &Resource::Fleet, now).is_permitted(),
            _ => fits(*action, Effect::Permit) && !fits(*action, Effect::Forbid),
        })
        .collect()
}

fn principal_fits(policies: &Policies, policy: &Policy, subject: &Subject) -> bool {
    let types = policies.types();
    let is_person = |of: &EntityTypeName| *of == types.person;
    let is = |one: &EntityUid| *one == uid(&types.person, subject.id.as_str());
    let within =
        |group: &EntityUid| is(group) || subject.teams.iter().any(|team| *group == uid(&types.team, team));
    match policy.principal_constraint() {
        PrincipalConstraint::Any => true,
        PrincipalConstraint::Is(of) => is_person(&of),
        PrincipalConstraint::Eq(one) => is(&one),
        PrincipalConstraint::In(group) => within(&group),
        PrincipalConstraint::IsIn(of, group) => is_person(&of) && within(&group),
    }
}

fn action_fits(policies: &Policies, policy: &Policy, action: Action) -> bool {
    let action = policies.types().action(action.as_str());
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => one == action,
        ActionConstraint::In(groups) => {
            groups.iter().any(|group| *group == action || policies.actions().is_ancestor_of(group, &action))
        }
    }
}

/// For a permit: some resource of the kind could be in scope. For a forbid: every one is.
fn resource_fits(policies: &Policies, policy: &Policy, about: About, effect: Effect) -> bool {
    let own = policies.types().about(about);
    match policy.resource_constraint() {
        ResourceConstraint::Any => true,
        ResourceConstraint::Is(of) => of == *own,
        ResourceConstraint::In(_) => effect == Effect::Permit,
        ResourceConstraint::Eq(one) => effect == Effect::Permit && one.type_name() == own,
        ResourceConstraint::IsIn(of, _) => effect == Effect::Permit && of == *own,
    }
}
