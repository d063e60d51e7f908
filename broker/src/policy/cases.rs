//! Cases: an ask, the expected decision, and why. Written beside the policies, run in CI.
//!
//! ```toml
//! [people.ana]
//! teams = ["support"]
//!
//! [devices.gw-0042]
//! product_line = "edge-gateway"
//! labels = { env = "field" }
//!
//! [[case]]
//! name = "A gateway in the field waits for a support lead"
//! why = "Customers' gateways are opened by two people."
//! person = "ana"
//! device = "gw-0042"
//! channels = ["shell"]
//! duration = "1h"
//! reason = "The uplink flaps"
//! expect = "needs-approval"
//! approver_teams = ["support-leads"]
//! ```

use super::error::{Mistakes, line_of};
use super::set::{files_in, read_file};
use super::{
    Action, Approvals, ConnectAsk, Decision, DeviceFacts, Permission, Policies, PolicyErrors, RequestFacts,
    Resource, SessionFacts, Subject, evaluate, may,
};
use daypass_protocol::api::{CraClass, DeviceState};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::{DeviceId, ID_RANDOM_BYTES, LineName, Login, PersonId};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The moment of a case that names none: Sunday 2026-11-22, 10:15 UTC.
const DEFAULT_NOW: Timestamp = Timestamp(1_795_342_500_000);

/// One file of cases.
#[derive(Debug)]
pub struct CaseFile {
    name: String,
    people: BTreeMap<String, Subject>,
    devices: BTreeMap<String, DeviceFacts>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    people: BTreeMap<String, WrittenPerson>,
    devices: BTreeMap<DeviceId, WrittenDevice>,
    #[serde(default)]
    case: Vec<toml::Spanned<Case>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPerson {
    #[serde(default)]
    teams: Vec<String>,
    email: Option<String>,
    #[serde(default)]
    mfa: bool,
    /// How long ago they signed in.
    #[serde(default)]
    signed_in: Span,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDevice {
    product_line: LineName,
    #[serde(default = "default_class")]
    cra_class: CraClass,
    #[serde(default = "active")]
    state: DeviceState,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    forward_targets: Vec<ForwardTarget>,
}

fn default_class() -> CraClass {
    CraClass::Default
}

fn active() -> DeviceState {
    DeviceState::Active
}

/// What a case expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expected {
    Allow,
    NeedsApproval,
    Deny,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::NeedsApproval => "needs-approval",
            Self::Deny => "deny",
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    why: String,
    person: String,
    #[serde(default = "connect")]
    action: String,
    device: Option<DeviceId>,
    /// Whose request or session it is, where the action is about one.
    owner: Option<String>,
    /// `diag` unless it says otherwise.
    login: Option<Login>,
    #[serde(default = "shell")]
    channels: ChannelSet,
    #[serde(default = "half_an_hour")]
    duration: Span,
    #[serde(default)]
    reason: String,
    ticket: Option<String>,
    #[serde(default)]
    emergency: bool,
    #[serde(default)]
    on_site: bool,
    command: Option<String>,
    #[serde(default)]
    forward_targets: Vec<ForwardTarget>,
    /// Who has approved so far.
    #[serde(default)]
    approved_by: Vec<String>,
    at: Option<toml::value::Datetime>,

    /// Always there in `cases/`; an ask for `explain` needs none.
    expect: Option<Expected>,
    /// Policies that must be among those that permit or refuse it.
    #[serde(default)]
    by: Vec<String>,
    approver_teams: Option<Vec<String>>,
    approvals_needed: Option<u32>,
    /// Exactly what would be possible instead.
    would_allow: Option<Vec<String>>,
}

fn connect() -> String {
    Action::Connect.as_str().to_owned()
}

fn shell() -> ChannelSet {
    [ChannelKind::Shell].into_iter().collect()
}

fn half_an_hour() -> Span {
    Span(Duration::from_mins(30))
}

/// A length of time as people write it: `30m`, `4h`, `2d`, `90s`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a length of time: a number and s, m, h or d, as in 30m");
        let unit = match text.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            _ => return Err(wrong()),
        };
        let amount: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        Ok(Self(Duration::from_secs(amount.checked_mul(unit).ok_or_else(wrong)?)))
    }
}

/// How one case came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub file: String,
    pub name: String,
    pub why: String,
    /// What was decided, in words.
    pub decided: String,
    /// What differs from what was expected; none when it passed.
    pub differences: Vec<String>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

/// What came of all cases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(Outcome::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.passed()) {
            writeln!(f, "FAILED {}: {}", outcome.file, outcome.name)?;
            if !outcome.why.is_empty() {
                writeln!(f, "  why it matters: {}", outcome.why)?;
            }
            for difference in &outcome.differences {
                writeln!(f, "  {difference}")?;
            }
            writeln!(f, "  {}", outcome.decided.replace('\n', "\n  "))?;
        }
        let failed = self.outcomes.iter().filter(|outcome| !outcome.passed()).count();
        write!(f, "{} cases, {failed} failed", self.outcomes.len())
    }
}

/// Reads every `cases/*.toml` of a folder of policies.
pub fn load(dir: &Path) -> Result<Vec<CaseFile>, PolicyErrors> {
    let mut mistakes = Mistakes::default();
    let mut files = Vec::new();
    let cases = dir.join("cases");
    if cases.is_dir() {
        for path in files_in(&cases, "toml")? {
            match read_file(&path).and_then(|text| CaseFile::parse(&path.display().to_string(), &text)) {
                Ok(file) => files.push(file),
                Err(errors) => mistakes.extend(errors),
            }
        }
    }
    mistakes.or(Some(files))
}

/// Runs cases against a set of policies.
pub fn run(policies: &Policies, files: &[CaseFile]) -> Report {
    Report { outcomes: files.iter().flat_map(|file| file.run(policies)).collect() }
}

impl CaseFile {
    /// Reads a file of cases, and checks that everybody and everything it speaks of is in it.
    pub fn parse(name: &str, text: &str) -> Result<Self, PolicyErrors> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            PolicyErrors::one(name, line, error.message())
        })?;
        let people = written.people.into_iter().enumerate().map(|(i, (person, facts))| {
            let subject = Subject {
                id: numbered(i),
                email: facts.email.unwrap_or_else(|| format!("{person}@example.com")),
                teams: facts.teams,
                mfa: facts.mfa,
                signed_in_at: DEFAULT_NOW - facts.signed_in.0,
            };
            (person, subject)
        });
        let people: BTreeMap<String, Subject> = people.collect();
        let devices = written.devices.into_iter().map(|(id, facts)| {
            let device = DeviceFacts {
                id: id.clone(),
                product_line: facts.product_line,
                cra_class: facts.cra_class,
                state: facts.state,
                labels: facts.labels,
                forward_targets: facts.forward_targets,
            };
            (String::from(id), device)
        });
        let mut file = Self { name: name.to_owned(), people, devices: devices.collect(), cases: Vec::new() };
        let mut mistakes = Mistakes::default();
        for case in written.case {
            let line = line_of(text, case.span().start);
            let case = case.into_inner();
            if let Err(message) = file.question(&case) {
                mistakes.push(name, Some(line), format!("{:?}: {message}", case.name));
            }
            file.cases.push(case);
        }
        mistakes.or(Some(file))
    }

    /// What is decided on each case, whether or not it expects something.
    pub fn explain(&self, policies: &Policies) -> String {
        let words = self.outcomes(policies).map(|(case, decided)| match decided {
            Ok(decided) => format!("{}\n{}", case.name, decided.explained(policies)),
            Err(message) => format!("{}\n{message}", case.name),
        });
        words.collect::<Vec<_>>().join("\n\n")
    }

    fn run(&self, policies: &Policies) -> Vec<Outcome> {
        let outcome = |(case, decided): (&Case, Result<Decided, String>)| Outcome {
            file: self.name.clone(),
            name: case.name.clone(),
            why: case.why.clone(),
            differences: match &decided {
                Ok(decided) => case.differences(decided),
                Err(message) => vec![message.clone()],
            },
            decided: decided.map_or_else(|message| message, |decided| decided.explained(policies)),
        };
        self.outcomes(policies).map(outcome).collect()
    }

    fn outcomes<'a>(
        &'a self,
        policies: &'a Policies,
    ) -> impl Iterator<Item = (&'a Case, Result<Decided, String>)> {
        self.cases.iter().map(|case| (case, self.question(case).map(|question| question.decide(policies))))
    }

    fn person(&self, name: &str) -> Result<&Subject, String> {
        self.people.get(name).ok_or_else(|| format!("there is no person {name:?} in this file"))
    }

    fn question(&self, case: &Case) -> Result<Question, String> {
        let mut subject = self.person(&case.person)?.clone();
        let now = case.at.as_ref().map_or(Ok(DEFAULT_NOW), moment)?;
        subject.signed_in_at = now - subject.signed_in_at.until(DEFAULT_NOW);
        let device = || {
            let id = case.device.as_ref().ok_or("it needs a device")?;
            let found = self.devices.get(id.as_str());
            found.cloned().ok_or_else(|| format!("there is no device {id} in this file"))
        };
        let owner = || {
            let name = case.owner.as_ref().ok_or("it needs an owner: whose request or session it is")?;
            Ok::<PersonId, String>(self.person(name)?.id.clone())
        };
        let login = || match &case.login {
            Some(login) => Ok(login.clone()),
            None => "diag".parse().map_err(|e: daypass_protocol::ids::InvalidId| e.to_string()),
        };
        let action = Action::named(&case.action).ok_or_else(|| format!("no action {:?}", case.action))?;
        let about = match action.about() {
            _ if action == Action::Connect => {
                let mut approvers = Vec::new();
                for name in &case.approved_by {
                    let approver = self.person(name)?;
                    approvers.push((&approver.id, &approver.teams));
                }
                let approvals = Approvals::of(&subject.id, approvers);
                let ask = ConnectAsk {
                    subject,
                    device: device()?,
                    login: login()?,
                    channels: case.channels.clone(),
                    duration: case.duration.0,
                    reason: case.reason.clone(),
                    ticket: case.ticket.clone(),
                    emergency: case.emergency,
                    on_site: case.on_site,
                    command: case.command.clone(),
                    forward_targets: case.forward_targets.clone(),
                };
                return Ok(Question::Connect { ask: Box::new(ask), approvals, now });
            }
            super::About::Fleet => Owned::Fleet,
            super::About::Device => Owned::Device(device()?),
            super::About::Request => Owned::Request(RequestFacts {
                requester: owner()?,
                device: device()?,
                login: login()?,
                channels: case.channels.clone(),
                duration: case.duration.0,
                emergency: case.emergency,
            }),
            super::About::Session => {
                Owned::Session(SessionFacts { person: owner()?, device: device()?, login: login()? })
            }
        };
        Ok(Question::May { subject: Box::new(subject), action, about: Box::new(about), now })
    }
}

/// A case, ready to be asked.
enum Question {
    Connect { ask: Box<ConnectAsk>, approvals: Approvals, now: Timestamp },
    May { subject: Box<Subject>, action: Action, about: Box<Owned>, now: Timestamp },
}

enum Owned {
    Fleet,
    Device(DeviceFacts),
    Request(RequestFacts),
    Session(SessionFacts),
}

enum Decided {
    Connect(Decision),
    May(Permission),
}

impl Question {
    fn decide(&self, policies: &Policies) -> Decided {
        match self {
            Self::Connect { ask, approvals, now } => {
                Decided::Connect(evaluate(policies, ask, approvals, *now))
            }
            Self::May { subject, action, about, now } => {
                let resource = match &**about {
                    Owned::Fleet => Resource::Fleet,
                    Owned::Device(device) => Resource::Device(device),
                    Owned::Request(request) => Resource::Request(request),
                    Owned::Session(session) => Resource::Session(session),
                };
                Decided::May(may(policies, subject, *action, &resource, *now))
            }
        }
    }
}

impl Decided {
    fn as_expected(&self) -> Expected {
        match self {
            Self::Connect(Decision::Allow(_)) | Self::May(Permission::Permitted { .. }) => Expected::Allow,
            Self::Connect(Decision::NeedsApproval(_)) => Expected::NeedsApproval,
            Self::Connect(Decision::Deny(_)) | Self::May(Permission::Refused(_)) => Expected::Deny,
        }
    }

    fn policies(&self) -> &[String] {
        match self {
            Self::Connect(Decision::Allow(terms)) => &terms.policies,
            Self::Connect(Decision::NeedsApproval(asked)) => &asked.terms.policies,
            Self::Connect(Decision::Deny(refusal)) | Self::May(Permission::Refused(refusal)) => {
                &refusal.policies
            }
            Self::May(Permission::Permitted { by }) => by,
        }
    }

    fn explained(&self, policies: &Policies) -> String {
        let mut words = match self {
            Self::Connect(decision) => decision.to_string(),
            Self::May(Permission::Permitted { by }) => format!("allowed\n  by: {}", by.join(", ")),
            Self::May(Permission::Refused(refusal)) => refusal.to_string(),
        };
        for id in self.policies() {
            if let Some(description) = policies.description(id) {
                words.extend(["\n  ", id, ": ", description]);
            }
        }
        words
    }
}

impl Case {
    fn differences(&self, decided: &Decided) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differ = |what: &str, expected: String, found: String| {
            if expected != found {
                differences.push(format!("{what}: expected {expected}, found {found}"));
            }
        };
        let Some(expected) = self.expect else {
            return vec!["the case says nothing of what it expects: expect = \"…\"".to_owned()];
        };
        differ("decision", expected.to_string(), decided.as_expected().to_string());
        for id in &self.by {
            let among = decided.policies().contains(id);
            differ(&format!("policy {id} among those that decided"), "yes".into(), yes(among));
        }
        let asked = match decided {
            Decided::Connect(Decision::NeedsApproval(asked)) => Some(asked),
            _ => None,
        };
        if let Some(teams) = &self.approver_teams {
            let found = asked.map(|asked| asked.approver_teams.clone()).unwrap_or_default();
            differ("approver_teams", teams.join(", "), found.join(", "));
        }
        if let Some(needed) = self.approvals_needed {
            let found = asked.map_or(0, |asked| asked.approvals_needed);
            differ("approvals_needed", needed.to_string(), found.to_string());
        }
        if let Some(changes) = &self.would_allow {
            let found = match decided {
                Decided::Connect(Decision::Deny(refusal)) => refusal.would_allow.clone(),
                _ => Vec::new(),
            };
            differ("would_allow", changes.join(" | "), found.join(" | "));
        }
        differences
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// The id of the `i`th person of a file.
fn numbered(i: usize) -> PersonId {
    let mut bytes = [0; ID_RANDOM_BYTES];
    for (byte, part) in bytes.iter_mut().rev().zip((i + 1).to_le_bytes()) {
        *byte = part;
    }
    PersonId::from_random(bytes)
}

/// An offset date-time of TOML.
fn moment(at: &toml::value::Datetime) -> Result<Timestamp, String> {
    let wrong = || format!("{at} is not a moment: write it as 2026-11-22T10:15:00Z");
    let (Some(date), Some(time), Some(offset)) = (at.date, at.time, at.offset) else { return Err(wrong()) };
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    // Days since 1970 by whole years and the days before each month.
    let (year, month) = (i64::from(date.year), usize::from(date.month));
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    if !(1970..=9998).contains(&year) {
        return Err(wrong());
    }
    let of_year = before.get(month.wrapping_sub(1)).ok_or_else(wrong)?;
    let past: i64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let days = past + of_year + i64::from(leap(year) && month > 2) + i64::from(date.day) - 1;
    let seconds = days * 86_400
        + i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0))
        - minutes * 60;
    Ok(Timestamp(seconds * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_a_case_is_the_moment_it_says() {
        for text in ["2026-11-22T10:15:00.000Z", "2000-02-29T00:00:00.000Z", "2024-12-31T23:59:59.000Z"] {
            let at: toml::value::Datetime = text.parse().unwrap();
            assert_eq!(moment(&at).unwrap().to_string(), text);
        }
        let shifted: toml::value::Datetime = "2026-11-22T12:15:00+02:00".parse().unwrap();
        assert_eq!(moment(&shifted), Ok(DEFAULT_NOW));
        assert!(moment(&"2026-11-22".parse().unwrap()).is_err());
    }

    #[test]
    fn mistakes_in_cases_are_named_with_their_line() {
        let file = |text: &str| CaseFile::parse("cases/a.toml", text).unwrap_err().to_string();
        assert!(file("people = {}\ndevices = {}\ncolour = 1").starts_with("cases/a.toml:3: unknown field"));
        let text = "people.ana = {}\ndevices = {}\n\n[[case]]\nname = \"x\"\nperson = \"bob\"\n\n\
                    [[case]]\nname = \"y\"\nperson = \"ana\"\nduration = \"1h\"\n";
        let errors = file(text);
        assert!(errors.contains("cases/a.toml:4: \"x\": there is no person \"bob\""), "{errors}");
        assert!(errors.contains("cases/a.toml:8: \"y\": it needs a device"), "{errors}");
    }
}
