//! A set of policies: read, checked as a whole, and then never changed.

use super::error::{Mistakes, line_of};
use super::limits::SessionLimits;
use super::question::{Types, Verdict};
use super::{
    About, Action, Approvals, ConnectAsk, DeviceFacts, PolicyErrors, RequestFacts, Resource, SessionFacts,
    Subject, question,
};
use cedar_policy::{Effect, Entities, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use daypass_protocol::api::{CraClass, DeviceState};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::ids::Login;
use daypass_protocol::text;
use daypass_protocol::time::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The schema's name in a folder of policies.
pub const SCHEMA_FILE: &str = "schema.cedarschema";
/// Longest file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// Longest `@description`, in bytes.
const MAX_DESCRIPTION: usize = 400;

/// A valid set of policies and its schema.
#[derive(Debug)]
pub struct Policies {
    schema: Schema,
    set: PolicySet,
    types: Types,
    /// The schema's actions and the groups they are in.
    actions: Entities,
    described: Vec<Described>,
    teams: Vec<String>,
    logins: Vec<Login>,
    hash: String,
}

/// What people are told of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    id: String,
    description: String,
    limits: SessionLimits,
}

impl Policies {
    /// Reads `schema.cedarschema` and every `*.cedar` of a folder. Names all mistakes, or loads the set.
    pub fn load(dir: &Path) -> Result<Self, PolicyErrors> {
        let mut mistakes = Mistakes::default();
        let schema = read(&dir.join(SCHEMA_FILE), &mut mistakes);
        let mut files = Vec::new();
        for path in files_in(dir, "cedar").unwrap_or_else(|errors| {
            mistakes.extend(errors);
            Vec::new()
        }) {
            if let Some(source) = read(&path, &mut mistakes) {
                files.push((path.display().to_string(), source));
            }
        }
        let read = schema.map(|schema| (schema, files));
        let (schema, files) = mistakes.or(read)?;
        Self::from_named_sources(&dir.join(SCHEMA_FILE).display().to_string(), &schema, &files)
    }

    /// As [`Self::load`], from texts: the schema, and the policies by file name.
    pub fn from_sources(schema: &str, files: &[(String, String)]) -> Result<Self, PolicyErrors> {
        Self::from_named_sources(SCHEMA_FILE, schema, files)
    }

    fn from_named_sources(
        schema_file: &str,
        schema_source: &str,
        files: &[(String, String)],
    ) -> Result<Self, PolicyErrors> {
        let mut mistakes = Mistakes::default();
        let schema = read_schema(schema_file, schema_source, &mut mistakes);
        let mut set = PolicySet::new();
        let mut described = Vec::new();
        let mut places = HashMap::new();
        for (file, source) in files {
            for (line, policy) in read_policies(file, source, &mut mistakes) {
                let id = policy.id().to_string();
                let limits = SessionLimits::read(&policy).unwrap_or_else(|wrong| {
                    for why in wrong {
                        mistakes.push(file, Some(line), why);
                    }
                    SessionLimits::default()
                });
                let description = policy.annotation("description").unwrap_or_default().trim().to_owned();
                if set.add(policy).is_err() {
                    mistakes.push(file, Some(line), format!("a second policy with @id(\"{id}\")"));
                    continue;
                }
                places.insert(id.clone(), (file, source, line));
                described.push(Described { id, description, limits });
            }
        }
        if described.is_empty() && mistakes.is_empty() {
            mistakes.push(schema_file, None, "no policy stands beside it, so nobody could do anything");
        }
        if let Some(schema) = &schema {
            validate(schema, &set, &places, &mut mistakes);
        }
        let schema = mistakes.or(schema)?;

        let fault = |message: String| PolicyErrors::one(schema_file, None, message);
        let policies = Self {
            types: Types::new().map_err(fault)?,
            actions: schema.action_entities().map_err(|e| fault(e.to_string()))?,
            teams: teams_named(&set),
            logins: logins_named(&set).map_err(fault)?,
            hash: hash_of(schema_source, files),
            schema,
            set,
            described,
        };
        policies.understands_the_broker(schema_file)?;
        Ok(policies)
    }

    /// SHA-256 of the schema and the policies, in hex: which set made a decision.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The ids of the policies, in the order of the files.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.described.iter().map(|policy| policy.id.as_str())
    }

    /// What a policy says of itself.
    pub fn description(&self, id: &str) -> Option<&str> {
        self.described.iter().find(|policy| policy.id == id).map(|policy| policy.description.as_str())
    }

    /// The tightest limits that these policies set for a session they permit together.
    pub fn session_limits(&self, permitted_by: &[String]) -> SessionLimits {
        let permitting = self.described.iter().filter(|policy| permitted_by.contains(&policy.id));
        permitting.fold(SessionLimits::default(), |limits, policy| limits.and(policy.limits))
    }

    /// Every team that a policy names. Another team makes no difference to any decision.
    pub fn teams(&self) -> &[String] {
        &self.teams
    }

    /// Logins that a policy names.
    pub(super) fn logins(&self) -> &[Login] {
        &self.logins
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(super) fn set(&self) -> &PolicySet {
        &self.set
    }

    pub(super) fn types(&self) -> &Types {
        &self.types
    }

    pub(super) fn actions(&self) -> &Entities {
        &self.actions
    }

    /// Policy ids in the order of the files: Cedar gives them in none.
    pub(super) fn in_order<'a>(&self, ids: impl Iterator<Item = &'a PolicyId>) -> Vec<String> {
        let found: BTreeSet<&str> = ids.map(AsRef::as_ref).collect();
        self.ids().filter(|id| found.contains(id)).map(str::to_owned).collect()
    }

    /// Asks one question of each kind, so that a schema which lacks what the broker asks with is found
    /// when it is loaded and not when somebody needs access.
    fn understands_the_broker(&self, schema_file: &str) -> Result<(), PolicyErrors> {
        let mut mistakes = Mistakes::default();
        let sample = Sample::new().map_err(|e| PolicyErrors::one(schema_file, None, e))?;
        for action in Action::ALL {
            let verdict = match action.about() {
                _ if *action == Action::Connect => {
                    question::connect(self, &sample.ask, &Approvals::none(), Timestamp(0))
                }
                About::Fleet => sample.ask_for(self, *action, &Resource::Fleet),
                About::Device => sample.ask_for(self, *action, &Resource::Device(&sample.ask.device)),
                About::Request => sample.ask_for(self, *action, &Resource::Request(&sample.request)),
                About::Session => sample.ask_for(self, *action, &Resource::Session(&sample.session)),
            };
            if let Verdict::Failed(cause) = verdict {
                mistakes.push(schema_file, None, format!("the broker cannot ask for {action}: {cause}"));
            }
        }
        mistakes.or(Some(()))
    }
}

/// A question of each kind, about nobody.
struct Sample {
    ask: ConnectAsk,
    request: RequestFacts,
    session: SessionFacts,
}

impl Sample {
    fn new() -> Result<Self, String> {
        let invalid = |e: daypass_protocol::ids::InvalidId| e.to_string();
        let device = DeviceFacts {
            id: "sample".parse().map_err(invalid)?,
            product_line: "sample".parse().map_err(invalid)?,
            cra_class: CraClass::Default,
            state: DeviceState::Active,
            labels: [("sample".to_owned(), "sample".to_owned())].into(),
            forward_targets: vec![],
        };
        let subject = Subject {
            id: daypass_protocol::ids::PersonId::from_random([0; 5]),
            email: String::new(),
            teams: vec!["sample".to_owned()],
            mfa: false,
            signed_in_at: Timestamp(0),
        };
        let login: Login = "sample".parse().map_err(invalid)?;
        let ask = ConnectAsk {
            subject,
            device: device.clone(),
            login: login.clone(),
            channels: ChannelKind::ALL.into_iter().collect(),
            duration: Duration::from_mins(1),
            reason: "sample".to_owned(),
            ticket: Some("sample".to_owned()),
            emergency: false,
            on_site: false,
            command: None,
            forward_targets: vec![],
        };
        let session = SessionFacts { person: ask.subject.id.clone(), device, login };
        Ok(Self { request: ask.as_request(), session, ask })
    }

    fn ask_for(&self, policies: &Policies, action: Action, resource: &Resource<'_>) -> Verdict {
        question::permitted(policies, &(&self.ask.subject).into(), action.as_str(), resource, Timestamp(0))
    }
}

fn read_schema(file: &str, source: &str, mistakes: &mut Mistakes) -> Option<Schema> {
    match Schema::from_cedarschema_str(source) {
        Ok((schema, warnings)) => {
            for warning in warnings {
                mistakes.push_diagnostic(file, source, &warning);
            }
            Some(schema)
        }
        Err(error) => {
            mistakes.push_diagnostic(file, source, &error);
            None
        }
    }
}

/// The policies of one file under the names they give themselves, each with its line.
fn read_policies(file: &str, source: &str, mistakes: &mut Mistakes) -> Vec<(usize, Policy)> {
    let set = match PolicySet::from_str(source) {
        Ok(set) => set,
        Err(errors) => {
            for error in errors.iter() {
                mistakes.push_diagnostic(file, source, error);
            }
            return Vec::new();
        }
    };
    for template in set.templates() {
        let line = place_of(source, &template.to_cedar(), 0).map(|at| line_of(source, at));
        mistakes.push(file, line, "a template: only policies without ?principal and ?resource are loaded");
    }
    // Cedar numbers the policies of a text in their order; their texts are found again in that order.
    let mut numbered: Vec<&Policy> = set.policies().collect();
    numbered.sort_by_key(|policy| {
        policy.id().to_string().trim_start_matches("policy").parse::<usize>().unwrap_or(usize::MAX)
    });
    let mut from = 0;
    let mut named = Vec::new();
    for policy in numbered {
        let written = policy.to_cedar().unwrap_or_default();
        let at = place_of(source, &written, from).unwrap_or(from);
        from = at + written.len();
        let line = line_of(source, at);
        let id = policy.annotation("id").unwrap_or_default();
        let described = policy.annotation("description").unwrap_or_default();
        if !is_policy_id(id) {
            mistakes.push(file, Some(line), "a policy needs @id(\"…\") of a-z, 0-9 and -");
        }
        match text::visible_line("its @description", described, MAX_DESCRIPTION) {
            Ok(words) if words.is_empty() => mistakes.push(
                file,
                Some(line),
                "a policy needs @description(\"…\"), the sentence that people are shown",
            ),
            Ok(_) => {}
            Err(error) => mistakes.push(file, Some(line), error.to_string()),
        }
        named.push((line, policy.new_id(PolicyId::new(id))));
    }
    named
}

fn place_of(source: &str, written: &str, from: usize) -> Option<usize> {
    source.get(from..)?.find(written).map(|at| at + from)
}

fn is_policy_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Strict validation. Warnings count: a policy that can never apply, or a name that looks like another, is
/// a mistake in a text that people rely on.
fn validate(
    schema: &Schema,
    set: &PolicySet,
    places: &HashMap<String, (&String, &String, usize)>,
    mistakes: &mut Mistakes,
) {
    let result = Validator::new(schema.clone()).validate(set, ValidationMode::Strict);
    let found =
        result.validation_errors().map(|error| (error.policy_id(), error as &dyn miette::Diagnostic)).chain(
            result
                .validation_warnings()
                .map(|warning| (warning.policy_id(), warning as &dyn miette::Diagnostic)),
        );
    for (id, diagnostic) in found {
        let id: &str = id.as_ref();
        if let Some((file, source, line)) = places.get(id) {
            if diagnostic.labels().is_some_and(|mut labels| labels.next().is_some()) {
                mistakes.push_diagnostic(file, source, diagnostic);
            } else {
                mistakes.push(file, Some(*line), diagnostic.to_string());
            }
        } else {
            mistakes.push(id, None, diagnostic.to_string());
        }
    }
}

fn teams_named(set: &PolicySet) -> Vec<String> {
    let teams: BTreeSet<String> = set
        .policies()
        .flat_map(Policy::entity_literals)
        .filter(|literal| literal.type_name().to_string() == "Team")
        .map(|literal| literal.id().unescaped().to_owned())
        .collect();
    teams.into_iter().collect()
}

/// Logins that stand in a permit where `context.login` is compared: what to try when somebody asked for
/// another.
fn logins_named(set: &PolicySet) -> Result<Vec<Login>, String> {
    let mut words = BTreeSet::new();
    for policy in set.policies().filter(|policy| policy.effect() == Effect::Permit) {
        let json = policy.to_json().map_err(|e| e.to_string())?;
        compared_with_login(&json, &mut words);
    }
    Ok(words.iter().filter_map(|word| word.parse().ok()).collect())
}

fn compared_with_login(node: &serde_json::Value, words: &mut BTreeSet<String>) {
    match node {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                if matches!(key.as_str(), "==" | "contains") && mentions_login(value) {
                    strings_in(value, words);
                }
                compared_with_login(value, words);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| compared_with_login(item, words)),
        _ => {}
    }
}

/// `context.login`, in Cedar's JSON: `{".": {"left": {"Var": "context"}, "attr": "login"}}`.
fn mentions_login(node: &serde_json::Value) -> bool {
    match node {
        serde_json::Value::Object(fields) => {
            fields
                .get(".")
                .is_some_and(|access| access["attr"] == "login" && access["left"]["Var"] == "context")
                || fields.values().any(mentions_login)
        }
        serde_json::Value::Array(items) => items.iter().any(mentions_login),
        _ => false,
    }
}

fn strings_in(node: &serde_json::Value, words: &mut BTreeSet<String>) {
    match node {
        serde_json::Value::Object(fields) => {
            if let Some(word) = fields.get("Value").and_then(serde_json::Value::as_str) {
                words.insert(word.to_owned());
            }
            fields.values().for_each(|value| strings_in(value, words));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings_in(item, words)),
        _ => {}
    }
}

/// Every part with its length before it, so that no two sets share a text.
fn hash_of(schema: &str, files: &[(String, String)]) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    part(schema);
    // Names without their folder: the same files elsewhere are the same set.
    let mut files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, source)| (name.rsplit('/').next().unwrap_or(name), source.as_str()))
        .collect();
    files.sort_unstable();
    for (name, source) in files {
        part(name);
        part(source);
    }
    hex::encode(hash.finalize())
}

/// The files of a folder with this extension, by name.
pub(super) fn files_in(dir: &Path, extension: &str) -> Result<Vec<std::path::PathBuf>, PolicyErrors> {
    let unreadable = |e: std::io::Error| {
        PolicyErrors::one(dir.display().to_string(), None, format!("the folder cannot be read: {e}"))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|found| found == extension) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A file's text, or a mistake.
fn read(path: &Path, mistakes: &mut Mistakes) -> Option<String> {
    match read_file(path) {
        Ok(text) => Some(text),
        Err(errors) => {
            mistakes.extend(errors);
            None
        }
    }
}

/// A file's text, of bounded length.
pub(super) fn read_file(path: &Path) -> Result<String, PolicyErrors> {
    let wrong = |message: String| PolicyErrors::one(path.display().to_string(), None, message);
    let length = fs::metadata(path).map_err(|e| wrong(format!("cannot be read: {e}")))?.len();
    if length > MAX_FILE {
        return Err(wrong(format!("is {length} bytes long; at most {MAX_FILE} are read")));
    }
    fs::read_to_string(path).map_err(|e| wrong(format!("cannot be read: {e}")))
}
