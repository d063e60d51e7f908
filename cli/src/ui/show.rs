//! How the nouns of the API are shown.

use super::table::Cell;
use super::{Colour, Ui, words};
use crate::failure::Failure;
use daypass_protocol::api::{
    Device, DeviceDetail, DeviceState, EndReason, GrantState, Me, Request, RequestState, Session,
    SessionState,
};
use daypass_protocol::duration::spoken;
use daypass_protocol::said;
use daypass_protocol::time::Timestamp;

/// Columns of a reason in a table.
const REASON_COLUMNS: usize = 48;

/// To the minute, in UTC, which every reader of a table shares.
fn minute(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{} {}Z", text.get(..10).unwrap_or(&text), text.get(11..16).unwrap_or(""))
}

fn left(now: Timestamp, until: Timestamp) -> String {
    spoken(now.until(until).as_secs())
}

const fn device_state(state: DeviceState) -> (&'static str, Colour) {
    match state {
        DeviceState::Manufactured => ("manufactured", Colour::Faint),
        DeviceState::Provisioned => ("provisioned", Colour::Faint),
        DeviceState::Active => ("active", Colour::Good),
        DeviceState::Suspended => ("suspended", Colour::Waiting),
        DeviceState::Quarantined => ("quarantined", Colour::Bad),
        DeviceState::InRepair => ("in repair", Colour::Waiting),
        DeviceState::Transferred => ("transferred", Colour::Faint),
        DeviceState::Unsupported => ("unsupported", Colour::Faint),
        DeviceState::Lost => ("lost", Colour::Bad),
        DeviceState::Retired => ("retired", Colour::Faint),
    }
}

/// The state of a request, and of its grant where there is one.
fn request_state(request: &Request, now: Timestamp) -> (String, Colour) {
    match (request.state, &request.grant) {
        (RequestState::Pending, _) => (words::pending(&left(now, request.lapses_at)), Colour::Waiting),
        (RequestState::Granted, Some(grant)) => match grant.state {
            GrantState::Live => (words::live(&left(now, grant.ends_at)), Colour::Good),
            GrantState::Expired => ("expired".to_owned(), Colour::Faint),
            GrantState::Revoked => ("revoked".to_owned(), Colour::Bad),
            GrantState::Closed => ("closed".to_owned(), Colour::Faint),
        },
        (RequestState::Granted, None) => ("granted".to_owned(), Colour::Good),
        (RequestState::Denied, _) => ("denied".to_owned(), Colour::Bad),
        (RequestState::Cancelled, _) => ("cancelled".to_owned(), Colour::Faint),
        (RequestState::Lapsed, _) => ("lapsed".to_owned(), Colour::Faint),
    }
}

pub const fn end_reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Closed => "closed",
        EndReason::Expired => "expired",
        EndReason::Revoked => "revoked",
        EndReason::EndedByPerson => "ended by a person",
        EndReason::DeviceSuspended => "device suspended",
        EndReason::DeviceLost => "device lost",
        EndReason::RecorderFailed => "recorder failed",
        EndReason::Idle => "idle",
        EndReason::RecordingLimit => "recording limit",
        EndReason::PolicyChanged => "policy changed",
        EndReason::BrokerStopped => "broker stopped",
        EndReason::Interrupted => "interrupted",
        EndReason::Failed => "failed",
    }
}

fn session_state(session: &Session) -> (&'static str, Colour) {
    match (session.state, session.end_reason) {
        (SessionState::Opening, _) => ("opening", Colour::Waiting),
        (SessionState::Open, _) => ("live", Colour::Good),
        (SessionState::Ended, Some(EndReason::Closed)) => ("closed", Colour::Plain),
        (SessionState::Ended, Some(EndReason::Expired)) => ("expired", Colour::Plain),
        (SessionState::Ended, Some(reason)) => (end_reason(reason), Colour::Bad),
        (SessionState::Ended, None) => ("ended", Colour::Plain),
    }
}

fn labels(device: &Device) -> String {
    device.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

impl Ui {
    pub fn devices(&self, devices: &[Device]) -> Result<(), Failure> {
        if self.json {
            return self.json(&devices);
        }
        if devices.is_empty() {
            self.note(words::NO_DEVICES);
            return Ok(());
        }
        let rows: Vec<_> = devices
            .iter()
            .map(|device| {
                let (state, colour) = device_state(device.state);
                let (link, link_colour) =
                    if device.online { ("online", Colour::Good) } else { ("offline", Colour::Faint) };
                vec![
                    Cell::new(device.id.as_str()),
                    Cell::new(device.product_line.as_str()),
                    Cell::coloured(state, colour),
                    Cell::coloured(link, link_colour),
                    Cell::new(&device.serial_number),
                    Cell::new(labels(device)),
                ]
            })
            .collect();
        self.table(&["DEVICE", "LINE", "STATE", "LINK", "SERIAL", "LABELS"], &rows)
    }

    pub fn device(&self, detail: &DeviceDetail) -> Result<(), Failure> {
        if self.json {
            return self.json(detail);
        }
        let device = &detail.device;
        let (state, _) = device_state(device.state);
        self.facts(&[
            ("device", Some(device.id.to_string())),
            ("product line", Some(device.product_line.to_string())),
            ("state", Some(state.to_owned())),
            ("link", Some(if device.online { "online" } else { "offline" }.to_owned())),
            ("serial number", Some(device.serial_number.clone())),
            ("labels", Some(labels(device)).filter(|text| !text.is_empty())),
            ("last seen", device.last_seen_at.map(minute)),
            ("enrolled", device.enrolled_at.map(minute)),
            ("shim", device.shim_version.clone()),
            ("key", device.key_fingerprint.clone()),
        ])?;
        if detail.ledger.is_empty() {
            return Ok(());
        }
        self.data("\n")?;
        let rows: Vec<_> = detail
            .ledger
            .iter()
            .map(|entry| {
                let (to, colour) = device_state(entry.to);
                vec![
                    Cell::new(minute(entry.at)),
                    Cell::new(entry.from.map_or("", |from| device_state(from).0)),
                    Cell::coloured(to, colour),
                    Cell::new(&entry.by),
                    Cell::new(&entry.reason),
                ]
            })
            .collect();
        self.table(&["WHEN", "FROM", "TO", "BY", "REASON"], &rows)
    }

    pub fn requests(&self, requests: &[Request], now: Timestamp) -> Result<(), Failure> {
        if self.json {
            return self.json(&requests);
        }
        if requests.is_empty() {
            self.note(words::NO_REQUESTS);
            return Ok(());
        }
        let rows: Vec<_> = requests
            .iter()
            .map(|request| {
                let (state, colour) = request_state(request, now);
                let channels = request.grant.as_ref().map_or(&request.channels, |grant| &grant.channels);
                vec![
                    Cell::new(request.id.as_str()),
                    Cell::coloured(state, colour),
                    Cell::new(&request.person.email),
                    Cell::new(format!("{}@{}", request.login, request.device)),
                    Cell::new(words::asked_for(request, channels)).cut(REASON_COLUMNS),
                    Cell::new(spoken(request.duration_s)),
                    Cell::coloured(if request.emergency { "emergency" } else { "" }, Colour::Bad),
                    Cell::new(&request.reason).cut(REASON_COLUMNS),
                ]
            })
            .collect();
        self.table(&["REQUEST", "STATE", "PERSON", "WHERE", "CHANNELS", "FOR", "", "REASON"], &rows)
    }

    /// One request, after something was done with it.
    pub fn request(&self, request: &Request, now: Timestamp) -> Result<(), Failure> {
        if self.json {
            return self.json(request);
        }
        let (state, _) = request_state(request, now);
        let answers: Vec<String> = request.answers.iter().map(said::answer).collect();
        self.facts(&[
            ("request", Some(request.id.to_string())),
            ("state", Some(state)),
            ("person", Some(words::person(&request.person))),
            ("where", Some(format!("{}@{}", request.login, request.device))),
            ("channels", Some(request.channels.to_string())),
            ("asks to run", request.command.clone()),
            ("forwards to", Some(words::targets(request)).filter(|text| !text.is_empty())),
            ("for", Some(spoken(request.duration_s))),
            ("reason", Some(request.reason.clone())),
            ("ticket", request.ticket.clone()),
            ("emergency", request.emergency.then(|| "yes".to_owned())),
            ("why", Some(request.why.join("; ")).filter(|text| !text.is_empty())),
            (
                "approvers",
                (request.state == RequestState::Pending).then(|| words::approvers(&request.approver_teams)),
            ),
            ("answers", Some(answers.join("; ")).filter(|text| !text.is_empty())),
            ("granted", request.grant.as_ref().map(|grant| words::window(grant, &minute(grant.ends_at)))),
        ])
    }

    pub fn sessions(&self, sessions: &[Session]) -> Result<(), Failure> {
        if self.json {
            return self.json(&sessions);
        }
        if sessions.is_empty() {
            self.note(words::NO_SESSIONS);
            return Ok(());
        }
        let rows: Vec<_> = sessions
            .iter()
            .map(|session| {
                let (state, colour) = session_state(session);
                let lasted = session.ended_at.map(|end| spoken(session.started_at.until(end).as_secs()));
                vec![
                    Cell::new(session.id.as_str()),
                    Cell::coloured(state, colour),
                    Cell::new(&session.person.email),
                    Cell::new(format!("{}@{}", session.login, session.device)),
                    Cell::new(minute(session.started_at)),
                    Cell::new(lasted.unwrap_or_default()),
                    Cell::new(session.request.as_str()),
                    Cell::new(session.end_detail.as_deref().unwrap_or("")).cut(REASON_COLUMNS),
                ]
            })
            .collect();
        self.table(&["SESSION", "STATE", "PERSON", "WHERE", "STARTED", "LASTED", "REQUEST", ""], &rows)
    }

    pub fn session(&self, session: &Session) -> Result<(), Failure> {
        if self.json { self.json(session) } else { self.sessions(std::slice::from_ref(session)) }
    }

    pub fn person(&self, me: &Me, broker: &str, profile: &str) -> Result<(), Failure> {
        if self.json {
            return self.json(me);
        }
        self.facts(&[
            ("person", Some(format!("{} <{}>", me.name, me.email))),
            ("id", Some(me.id.to_string())),
            ("teams", Some(me.teams.join(", ")).filter(|text| !text.is_empty())),
            ("signed in", Some(minute(me.signed_in_at))),
            ("broker", Some(broker.to_owned())),
            ("profile", Some(profile.to_owned())),
        ])
    }
}
