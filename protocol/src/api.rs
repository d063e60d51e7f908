//! Bodies of the HTTP API. JSON; times are milliseconds since 1970 UTC, durations are seconds.
//!
//! Errors have one shape, RFC 9457: [`Problem`], sent as `application/problem+json`.

use crate::channel::ChannelSet;
use crate::ids::{DeviceId, LineName, Login, PersonId, RequestId, SessionId};
use crate::target::ForwardTarget;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Below it, by the name that `ssh` has for a device, is a WebSocket that carries the gateway's SSH under that
/// name. Binary messages, joined, are the byte stream; their boundaries mean nothing.
pub const SSH_PATH: &str = "/v1/ssh/";
/// Its subprotocol.
pub const SSH_PROTOCOL: &str = "daypass-ssh-1";
/// Longest message of it, either way, in bytes.
pub const SSH_MESSAGE: usize = 64 * 1024;
/// What stands before a ticket in the line that goes ahead of SSH on the gateway's port. SSH itself begins with
/// `SSH-` (RFC 4253 section 4.2).
pub const TICKET: &str = "daypass-ticket ";
/// Longest such line with its end, in bytes.
pub const TICKET_LINE: usize = 128;

macro_rules! body {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        $vis struct $name { $($fields)* }
    };
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($variants:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        $vis enum $name { $($variants)* }
    };
}

body! {
    /// RFC 9457. `type` is `about:blank` or `tag:daypass,2026:<code>`; `code` is for programs.
    pub struct Problem {
        #[serde(rename = "type")]
        pub kind: String,
        pub title: String,
        pub status: u16,
        /// One sentence for a person: what failed and on what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
        /// One sentence: what to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hint: Option<String>,
        pub code: String,
    }
}

body! {
    /// The right to one connection, straight to one device's name, on the gateway's SSH port: `POST
    /// /v1/ssh/{host}/tickets`. Good once and for moments, for the person who asked only.
    pub struct SshTicket {
        pub ticket: String,
        pub expires_at: Timestamp,
        /// Host and port of the SSH gateway.
        pub ssh_host: String,
        pub ssh_port: u16,
    }
}

body! {
    /// What anybody may know of a broker: `GET /v1/broker`.
    pub struct BrokerInfo {
        pub version: String,
        pub url: String,
        /// Host and port of the SSH gateway.
        pub ssh_host: String,
        pub ssh_port: u16,
        /// Suffix of device host names: `daypass`, as in `gw-0042.daypass`.
        pub host_suffix: String,
        /// One-line OpenSSH public keys, for `@cert-authority` in known_hosts.
        pub host_cas: Vec<String>,
        pub user_cas: Vec<String>,
        pub identity_cas: Vec<String>,
        /// Keys that sign audit checkpoints, trust bundles and challenges to devices.
        pub broker_keys: Vec<String>,
    }
}

body! {
    /// `GET /v1/me`.
    pub struct Me {
        pub id: PersonId,
        pub email: String,
        pub name: String,
        pub teams: Vec<String>,
        pub signed_in_at: Timestamp,
        /// What policy lets this person do at all, as Cedar action names, for a client to know which
        /// rooms to show: `approve`, `review`, `list_devices`, …
        pub may: Vec<String>,
    }
}

body! {
    /// RFC 8628 section 3.2: `POST /v1/device-authorization`.
    pub struct DeviceAuthorization {
        pub device_code: String,
        pub user_code: String,
        pub verification_uri: String,
        pub verification_uri_complete: String,
        /// Seconds.
        pub expires_in: u64,
        /// Seconds between polls.
        pub interval: u64,
    }
}

body! {
    /// RFC 6749 section 5.1: `POST /v1/token`.
    pub struct TokenAnswer {
        pub access_token: String,
        pub token_type: String,
        /// Seconds.
        pub expires_in: u64,
        pub refresh_token: String,
    }
}

body! {
    /// RFC 6749 section 5.2 and RFC 8628 section 3.5.
    pub struct TokenError {
        pub error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error_description: Option<String>,
    }
}

body! {
    /// A CLI that waits for its code to be confirmed: `GET /v1/cli-sign-ins/{user_code}`.
    pub struct CliSignIn {
        pub user_code: String,
        /// The client's own description of itself; unverified.
        pub client: String,
        pub address: String,
        pub asked_at: Timestamp,
        pub expires_at: Timestamp,
    }
}

body! {
    /// `POST /v1/cli-sign-ins/{user_code}`.
    pub struct CliSignInAnswer {
        pub confirm: bool,
    }
}

body! {
    /// `POST /v1/me/certificate`: asks for an identity certificate over the caller's key.
    pub struct IdentityCertificateAsk {
        /// One-line OpenSSH public key, Ed25519 or ECDSA P-256.
        pub public_key: String,
    }
}

body! {
    pub struct IdentityCertificate {
        /// One line, as in `id_ed25519-cert.pub`.
        pub certificate: String,
        pub valid_until: Timestamp,
    }
}

body! {
    pub enum DeviceState {
        Manufactured,
        Provisioned,
        Active,
        Suspended,
        Quarantined,
        InRepair,
        Transferred,
        Unsupported,
        Lost,
        Retired,
    }
}

body! {
    /// The classes of the EU Cyber Resilience Act, Regulation (EU) 2024/2847, articles 7 and 8.
    pub enum CraClass {
        Default,
        #[serde(rename = "important-1")]
        Important1,
        #[serde(rename = "important-2")]
        Important2,
        Critical,
    }
}

body! {
    pub struct ProductLine {
        pub name: LineName,
        pub title: String,
        pub cra_class: CraClass,
        /// End of support, `2031-12-31`.
        pub support_end: String,
        /// Where forwards on its devices lead unless a request names targets: loopback ports, as in
        /// `127.0.0.1:80`.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub forward_targets: Vec<ForwardTarget>,
    }
}

body! {
    pub struct Device {
        pub id: DeviceId,
        pub serial_number: String,
        pub product_line: LineName,
        pub state: DeviceState,
        pub labels: BTreeMap<String, String>,
        /// Whether its tunnel is up.
        pub online: bool,
        pub last_seen_at: Option<Timestamp>,
        /// `SHA256:…` of the device key.
        pub key_fingerprint: Option<String>,
        pub shim_version: Option<String>,
        pub enrolled_at: Option<Timestamp>,
    }
}

body! {
    /// One step of a device's life.
    pub struct LedgerEntry {
        pub at: Timestamp,
        pub from: Option<DeviceState>,
        pub to: DeviceState,
        /// A person's e-mail address, or `broker`.
        pub by: String,
        pub reason: String,
    }
}

body! {
    pub struct DeviceDetail {
        #[serde(flatten)]
        pub device: Device,
        pub ledger: Vec<LedgerEntry>,
    }
}

body! {
    /// `POST /v1/devices/{id}/suspend` and `/resume`, `/v1/sessions/{id}/end`,
    /// `/v1/requests/{id}/revoke`.
    pub struct WithReason {
        pub reason: String,
    }
}

body! {
    /// `POST /v1/enrol-tokens`.
    pub struct EnrolTokenAsk {
        pub product_line: LineName,
        /// How many devices may enrol with it.
        #[serde(default = "one")]
        pub uses: u32,
        /// Seconds until it expires.
        #[serde(default = "an_hour")]
        pub lifetime_s: u64,
        #[serde(default)]
        pub labels: BTreeMap<String, String>,
    }
}

fn one() -> u32 {
    1
}

fn an_hour() -> u64 {
    3600
}

body! {
    pub struct EnrolToken {
        /// Shown once; only a hash is kept.
        pub token: String,
        pub product_line: LineName,
        pub uses: u32,
        pub expires_at: Timestamp,
    }
}

body! {
    /// `POST /v1/requests`.
    pub struct Ask {
        pub device: DeviceId,
        pub login: Login,
        pub channels: ChannelSet,
        /// Seconds.
        pub duration_s: u64,
        pub reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ticket: Option<String>,
        #[serde(default)]
        pub emergency: bool,
        /// The one command to run, where only that is asked for; `channels` is then `exec` alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub command: Option<String>,
        /// Where forwards may lead, as `HOST:PORT`; with the channel `forward` only. Left out, they are those
        /// that are listed for the product line.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub forward_targets: Vec<ForwardTarget>,
    }
}

body! {
    pub enum RequestState {
        Pending,
        Granted,
        Denied,
        Cancelled,
        Lapsed,
    }
}

body! {
    pub enum GrantState {
        Live,
        Expired,
        Revoked,
        Closed,
    }
}

body! {
    pub struct PersonRef {
        pub id: PersonId,
        pub email: String,
        pub name: String,
    }
}

body! {
    pub enum Verdict {
        Approve,
        Deny,
    }
}

body! {
    /// One person's answer.
    pub struct Answer {
        pub by: PersonRef,
        pub at: Timestamp,
        pub verdict: Verdict,
        pub comment: Option<String>,
        /// Teams of the approver at that time.
        pub teams: Vec<String>,
        /// Set where the approver allowed less than was asked.
        pub duration_s: Option<u64>,
        pub channels: Option<ChannelSet>,
    }
}

body! {
    /// What was granted.
    pub struct Grant {
        pub state: GrantState,
        pub channels: ChannelSet,
        pub starts_at: Timestamp,
        pub ends_at: Timestamp,
        pub ended_by: Option<String>,
    }
}

body! {
    pub struct Request {
        pub id: RequestId,
        pub state: RequestState,
        pub person: PersonRef,
        pub device: DeviceId,
        pub product_line: LineName,
        pub login: Login,
        pub channels: ChannelSet,
        pub duration_s: u64,
        pub reason: String,
        pub ticket: Option<String>,
        pub emergency: bool,
        /// The one command that was asked for; nothing else runs under its grant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub command: Option<String>,
        /// Where forwards may lead, as `HOST:PORT`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub forward_targets: Vec<ForwardTarget>,
        pub asked_at: Timestamp,
        /// When a pending request lapses.
        pub lapses_at: Timestamp,
        /// Why policy asks people, in its own words.
        pub why: Vec<String>,
        /// Teams one of whose members may approve.
        pub approver_teams: Vec<String>,
        pub answers: Vec<Answer>,
        pub grant: Option<Grant>,
        /// Whether the caller may answer it now.
        pub may_answer: bool,
    }
}

body! {
    /// `POST /v1/requests/{id}/approve`.
    #[derive(Default)]
    pub struct Approval {
        /// Seconds; at most what was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub duration_s: Option<u64>,
        /// At most what was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub channels: Option<ChannelSet>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub comment: Option<String>,
    }
}

body! {
    /// `POST /v1/requests/{id}/deny`.
    pub struct Denial {
        pub comment: String,
    }
}

body! {
    pub enum SessionState {
        Opening,
        Open,
        Ended,
    }
}

body! {
    /// Why a session ended.
    pub enum EndReason {
        /// The engineer's client or the process ended it.
        Closed,
        /// The grant's window is over.
        Expired,
        /// The grant was revoked.
        Revoked,
        /// Somebody ended it.
        EndedByPerson,
        DeviceSuspended,
        DeviceLost,
        RecorderFailed,
        /// Nobody typed for longer than policy or the broker allow.
        Idle,
        /// The recording reached the size that policy or the broker allow.
        RecordingLimit,
        PolicyChanged,
        BrokerStopped,
        /// Found open after the broker was not shut down in order.
        Interrupted,
        Failed,
    }
}

body! {
    pub struct Session {
        pub id: SessionId,
        pub request: RequestId,
        pub person: PersonRef,
        pub device: DeviceId,
        pub login: Login,
        pub state: SessionState,
        pub started_at: Timestamp,
        pub ended_at: Option<Timestamp>,
        pub end_reason: Option<EndReason>,
        pub end_detail: Option<String>,
        pub client_address: String,
        pub recordings: Vec<Recording>,
    }
}

body! {
    /// The last line of a session that is watched: what ended, and why.
    pub struct WatchEnd {
        pub ended: WatchEnded,
        /// Of a session that ended.
        pub reason: Option<EndReason>,
        pub detail: Option<String>,
        /// The channel that was shown, and how many bytes of its recording: where to go on from.
        pub channel: Option<u32>,
        pub next: u64,
    }
}

body! {
    /// What ended for somebody who watches a session.
    pub enum WatchEnded {
        Session,
        /// The terminal was closed; the session goes on.
        Terminal,
        /// The watcher's proof of who they are; with a new one the watching can go on.
        SignIn,
        /// The watcher's right to watch.
        Right,
        /// The broker could not read on; the cause is in its log.
        Failed,
    }
}

body! {
    pub enum RecordingKind {
        /// asciicast v2, one per PTY channel.
        Asciicast,
        /// Standard output and error of a command without a PTY, as NDJSON with offsets and base64.
        Output,
        /// NDJSON, one per session.
        Events,
    }
}

body! {
    pub struct Recording {
        /// Number within the session: 0 is the events file.
        pub number: u32,
        pub kind: RecordingKind,
        pub channel: Option<u32>,
        /// Bytes of content, before compression.
        pub bytes: u64,
        /// SHA-256 of the content, hex; set when it is closed.
        pub sha256: Option<String>,
        pub closed: bool,
        /// When it had been kept as long as it had to be; its content is gone.
        pub removed_at: Option<Timestamp>,
    }
}

/// Lists come in pages: pass `next` as `after` for more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
