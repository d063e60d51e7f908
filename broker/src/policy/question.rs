//! One question to Cedar, and its answer.
//!
//! Everything becomes values through Cedar's API. No text of a person, a label or a team is ever parsed
//! as Cedar, so nothing that somebody can write changes what is asked.

use super::set::Policies;
use super::{Approvals, ConnectAsk, DeviceFacts, Resource, Subject};
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request,
    RestrictedExpression,
};
use daypass_protocol::api::{CraClass, DeviceState};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::LineName;
use daypass_protocol::time::Timestamp;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

/// What Cedar said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The policies that permitted it.
    Allowed(Vec<String>),
    /// The policies that forbade it; none when nothing permits it.
    Refused(Vec<String>),
    /// The question could not be asked, or a policy could not be evaluated. Cedar would skip that policy,
    /// which for a forbid is failing open: so this is a refusal, with the cause for the log.
    Failed(String),
}

/// Names of the schema's entity types.
#[derive(Clone, Debug)]
pub(super) struct Types {
    pub(super) person: EntityTypeName,
    pub(super) team: EntityTypeName,
    fleet: EntityTypeName,
    product_line: EntityTypeName,
    device: EntityTypeName,
    request: EntityTypeName,
    session: EntityTypeName,
    action: EntityTypeName,
    cra_class: EntityTypeName,
    device_state: EntityTypeName,
    channel: EntityTypeName,
}

impl Types {
    pub(super) fn new() -> Result<Self, String> {
        let name = |text: &str| EntityTypeName::from_str(text).map_err(|e| e.to_string());
        Ok(Self {
            person: name("Person")?,
            team: name("Team")?,
            fleet: name("Fleet")?,
            product_line: name("ProductLine")?,
            device: name("Device")?,
            request: name("Request")?,
            session: name("Session")?,
            action: name("Action")?,
            cra_class: name("CraClass")?,
            device_state: name("DeviceState")?,
            channel: name("Channel")?,
        })
    }

    /// The type of what an action is about.
    pub(super) fn about(&self, about: super::About) -> &EntityTypeName {
        match about {
            super::About::Fleet => &self.fleet,
            super::About::Device => &self.device,
            super::About::Request => &self.request,
            super::About::Session => &self.session,
        }
    }

    pub(super) fn action(&self, name: &str) -> EntityUid {
        uid(&self.action, name)
    }

    fn channels(&self, channels: &ChannelSet) -> RestrictedExpression {
        set(channels.iter().map(|kind| uid(&self.channel, kind.as_str())))
    }
}

pub(super) fn uid(of: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id))
}

fn set(of: impl IntoIterator<Item = EntityUid>) -> RestrictedExpression {
    RestrictedExpression::new_set(of.into_iter().map(RestrictedExpression::new_entity_uid))
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn texts<T: ToString>(values: &[T]) -> RestrictedExpression {
    RestrictedExpression::new_set(values.iter().map(|value| text(&value.to_string())))
}

fn length(value: Duration) -> RestrictedExpression {
    let ms = i64::try_from(value.as_millis()).unwrap_or(i64::MAX);
    RestrictedExpression::new_duration(format!("{ms}ms"))
}

pub(super) const fn cra_class(class: CraClass) -> &'static str {
    match class {
        CraClass::Default => "default",
        CraClass::Important1 => "important-1",
        CraClass::Important2 => "important-2",
        CraClass::Critical => "critical",
    }
}

pub(super) const fn device_state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Manufactured => "manufactured",
        DeviceState::Provisioned => "provisioned",
        DeviceState::Active => "active",
        DeviceState::Suspended => "suspended",
        DeviceState::Quarantined => "quarantined",
        DeviceState::InRepair => "in_repair",
        DeviceState::Transferred => "transferred",
        DeviceState::Unsupported => "unsupported",
        DeviceState::Lost => "lost",
        DeviceState::Retired => "retired",
    }
}

/// Who is asked about: a subject, or somebody imagined who has no person's id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Principal<'a> {
    pub(super) id: &'a str,
    pub(super) email: &'a str,
    pub(super) teams: &'a [String],
    pub(super) mfa: bool,
    pub(super) signed_in_at: Timestamp,
}

impl<'a> From<&'a Subject> for Principal<'a> {
    fn from(subject: &'a Subject) -> Self {
        Self {
            id: subject.id.as_str(),
            email: &subject.email,
            teams: &subject.teams,
            mfa: subject.mfa,
            signed_in_at: subject.signed_in_at,
        }
    }
}

type Pairs = Vec<(String, RestrictedExpression)>;

fn signed_in(who: &Principal<'_>, now: Timestamp) -> Pairs {
    vec![
        ("now".into(), RestrictedExpression::new_datetime(now.to_string())),
        ("since_sign_in".into(), length(who.signed_in_at.until(now))),
        ("mfa".into(), RestrictedExpression::new_bool(who.mfa)),
    ]
}

/// Whether `ask` is allowed with these approvals.
pub(super) fn connect(
    policies: &Policies,
    ask: &ConnectAsk,
    approvals: &Approvals,
    now: Timestamp,
) -> Verdict {
    let who = Principal::from(&ask.subject);
    let types = policies.types();
    let mut context = signed_in(&who, now);
    context.extend([
        ("login".into(), text(ask.login.as_str())),
        ("channels".into(), types.channels(&ask.channels)),
        ("duration".into(), length(ask.duration)),
        ("approvals".into(), RestrictedExpression::new_long(approvals.count().into())),
        ("approver_teams".into(), set(approvals.teams().iter().map(|team| uid(&types.team, team)))),
        ("has_reason".into(), RestrictedExpression::new_bool(!ask.reason.trim().is_empty())),
        (
            "reason_length".into(),
            RestrictedExpression::new_long(
                i64::try_from(ask.reason.trim().chars().count()).unwrap_or(i64::MAX),
            ),
        ),
        ("emergency".into(), RestrictedExpression::new_bool(ask.emergency)),
        ("on_site".into(), RestrictedExpression::new_bool(ask.on_site)),
    ]);
    // An ask with fewer channels, as approvers and suggestions make it, keeps its targets: they count only here.
    let forwards = ask.channels.contains(ChannelKind::Forward);
    let targets = if forwards { ask.forward_targets.as_slice() } else { &[] };
    context.push(("forward_targets".into(), texts(targets)));
    if let Some(command) = &ask.command {
        context.push(("command".into(), text(command)));
    }
    if let Some(ticket) = ask.ticket.as_deref().map(str::trim).filter(|ticket| !ticket.is_empty()) {
        context.push(("ticket".into(), text(ticket)));
    }
    answer(policies, &who, super::Action::Connect.as_str(), &Resource::Device(&ask.device), context)
}

/// Whether `who` may do `action` to `resource`.
pub(super) fn permitted(
    policies: &Policies,
    who: &Principal<'_>,
    action: &str,
    resource: &Resource<'_>,
    now: Timestamp,
) -> Verdict {
    answer(policies, who, action, resource, signed_in(who, now))
}

fn answer(
    policies: &Policies,
    who: &Principal<'_>,
    action: &str,
    resource: &Resource<'_>,
    context: Pairs,
) -> Verdict {
    let (request, entities) = match put(policies, who, action, resource, context) {
        Ok(question) => question,
        Err(cause) => return Verdict::Failed(cause),
    };
    let response = Authorizer::new().is_authorized(&request, policies.set(), &entities);
    let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
    if !errors.is_empty() {
        return Verdict::Failed(errors.join("; "));
    }
    let because = policies.in_order(response.diagnostics().reason());
    match response.decision() {
        Decision::Allow => Verdict::Allowed(because),
        Decision::Deny => Verdict::Refused(because),
    }
}

/// The question in Cedar's terms, checked against the schema.
fn put(
    policies: &Policies,
    who: &Principal<'_>,
    action: &str,
    resource: &Resource<'_>,
    context: Pairs,
) -> Result<(Request, Entities), String> {
    let types = policies.types();
    let schema = policies.schema();
    let person = uid(&types.person, who.id);
    let mut entities = vec![
        Entity::new(
            person.clone(),
            HashMap::from([("email".to_owned(), text(who.email))]),
            who.teams.iter().map(|team| uid(&types.team, team)).collect(),
        )
        .map_err(|e| e.to_string())?,
    ];
    let target = put_resource(types, resource, &mut entities)?;
    let context = Context::from_pairs(context).map_err(|e| e.to_string())?;
    let request = Request::new(person, types.action(action), target, context, Some(schema))
        .map_err(|e| e.to_string())?;
    let entities = Entities::from_entities(entities, Some(schema)).map_err(|e| e.to_string())?;
    Ok((request, entities))
}

fn put_resource(
    types: &Types,
    resource: &Resource<'_>,
    entities: &mut Vec<Entity>,
) -> Result<EntityUid, String> {
    let fleet = uid(&types.fleet, "all");
    match resource {
        Resource::Fleet => Ok(fleet),
        Resource::Device(device) => put_device(types, device, entities),
        Resource::Request(request) => {
            let device = put_device(types, &request.device, entities)?;
            let attributes = HashMap::from([
                (
                    "requester".to_owned(),
                    RestrictedExpression::new_entity_uid(uid(&types.person, request.requester.as_str())),
                ),
                ("login".to_owned(), text(request.login.as_str())),
                ("channels".to_owned(), types.channels(&request.channels)),
                ("duration".to_owned(), length(request.duration)),
                ("emergency".to_owned(), RestrictedExpression::new_bool(request.emergency)),
            ]);
            put_entity(uid(&types.request, "this"), attributes, device, entities)
        }
        Resource::Session(session) => {
            let device = put_device(types, &session.device, entities)?;
            let attributes = HashMap::from([
                (
                    "person".to_owned(),
                    RestrictedExpression::new_entity_uid(uid(&types.person, session.person.as_str())),
                ),
                ("login".to_owned(), text(session.login.as_str())),
            ]);
            put_entity(uid(&types.session, "this"), attributes, device, entities)
        }
    }
}

fn put_entity(
    own: EntityUid,
    attributes: HashMap<String, RestrictedExpression>,
    parent: EntityUid,
    entities: &mut Vec<Entity>,
) -> Result<EntityUid, String> {
    entities.push(Entity::new(own.clone(), attributes, HashSet::from([parent])).map_err(|e| e.to_string())?);
    Ok(own)
}

fn put_device(types: &Types, device: &DeviceFacts, entities: &mut Vec<Entity>) -> Result<EntityUid, String> {
    let class = || RestrictedExpression::new_entity_uid(uid(&types.cra_class, cra_class(device.cra_class)));
    let line = put_line(types, &device.product_line, class(), entities)?;
    let own = uid(&types.device, device.id.as_str());
    let state = RestrictedExpression::new_entity_uid(uid(&types.device_state, device_state(device.state)));
    entities.push(
        Entity::new_with_tags(
            own.clone(),
            [
                ("cra_class".to_owned(), class()),
                ("state".to_owned(), state),
                ("forward_targets".to_owned(), texts(&device.forward_targets)),
            ],
            [line],
            device.labels.iter().map(|(key, value)| (key.clone(), text(value))),
        )
        .map_err(|e| e.to_string())?,
    );
    Ok(own)
}

fn put_line(
    types: &Types,
    line: &LineName,
    class: RestrictedExpression,
    entities: &mut Vec<Entity>,
) -> Result<EntityUid, String> {
    let attributes = HashMap::from([("cra_class".to_owned(), class)]);
    put_entity(uid(&types.product_line, line.as_str()), attributes, uid(&types.fleet, "all"), entities)
}
