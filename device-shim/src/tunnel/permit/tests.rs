//! Each check of the lock, tried with everything else right.

use super::*;
use crate::state::TrustRecord;
use daypass_protocol::bundle::TrustBundle;
use daypass_protocol::certificate::{
    FORCE_COMMAND, FORWARD_TARGETS, PERMIT_PORT_FORWARDING, PERMIT_PTY, PERMIT_SFTP, SOURCE_ADDRESS,
};
use daypass_protocol::signed::Purpose;
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::tunnel::hello::Conversation;
use daypass_protocol::tunnel::open::{Octets, Pty};
use std::time::Duration;

const CA: u8 = 1;
const FOREIGN: u8 = 2;
const SESSION: u8 = 3;
const BROKER: u8 = 4;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

fn public(seed: u8) -> String {
    key(seed).public_key().to_openssh().unwrap()
}

fn binding(tunnel: u8) -> Binding {
    Binding::new(Conversation::Tunnel, &[tunnel; 32], &[2; 32], &[3; 32])
}

/// What the broker's clock says in these tests; the device has to follow it.
fn broker_time() -> Timestamp {
    crate::clock::build_time() + Duration::from_secs(1_000_000)
}

fn exec(command: &str) -> OpenKind {
    OpenKind::Exec { command: Octets(command.into()), pty: None }
}

fn shell() -> OpenKind {
    OpenKind::Shell {
        pty: Pty {
            term: "xterm".into(),
            size: daypass_protocol::tunnel::open::WindowSize::default(),
            modes: vec![],
        },
    }
}

/// A device that knows the time, its tunnel, and one request to it that is right.
struct Case {
    clock: Clock,
    gate: Gate,
    rules: Rules,
    remote_access: bool,
    open_channels: usize,
    ca: u8,
    kind: CertType,
    principals: Vec<&'static str>,
    from: Timestamp,
    until: Timestamp,
    serial: u64,
    key_id: &'static str,
    critical: Vec<(&'static str, &'static str)>,
    extensions: Vec<&'static str>,
    tunnel: u8,
    counter: u64,
    session: &'static str,
    login: &'static str,
    channel: OpenKind,
    env: Vec<(String, String)>,
    resume: Option<Received>,
    signer: u8,
    version: u32,
}

impl Default for Case {
    fn default() -> Self {
        let clock = Clock::new(Timestamp(0), || Duration::ZERO);
        clock.learn(broker_time());
        Self {
            clock,
            gate: Gate::default(),
            rules: Rules::default(),
            remote_access: true,
            open_channels: 0,
            ca: CA,
            kind: CertType::User,
            principals: vec!["diag@gw-0042"],
            from: broker_time() - Duration::from_mins(1),
            until: broker_time() + Duration::from_mins(10),
            serial: 7,
            key_id: "person=ana@example.com grant=R-7K2M9QXD session=S-7K2M9QXD",
            critical: vec![],
            extensions: vec![PERMIT_PTY, PERMIT_PORT_FORWARDING, PERMIT_SFTP],
            tunnel: 1,
            counter: 1,
            session: "S-7K2M9QXD",
            login: "diag",
            channel: exec("uptime"),
            env: vec![],
            resume: None,
            signer: SESSION,
            version: 1,
        }
    }
}

impl Case {
    fn certificate(&self) -> String {
        let (signer, key) = (key(self.ca), key(SESSION));
        let (from, until) = (self.from.as_secs(), self.until.as_secs());
        let mut builder = Builder::new([9; 16], key.public_key(), from, until).unwrap();
        builder.serial(self.serial).unwrap().cert_type(self.kind).unwrap().key_id(self.key_id).unwrap();
        if self.principals.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        for principal in &self.principals {
            builder.valid_principal(*principal).unwrap();
        }
        for (name, value) in &self.critical {
            builder.critical_option(*name, *value).unwrap();
        }
        for name in &self.extensions {
            builder.extension(*name, "").unwrap();
        }
        builder.sign(&signer).unwrap().to_openssh().unwrap()
    }

    fn signed(&self) -> SignedText {
        let open = Open {
            v: self.version,
            binding: binding(self.tunnel),
            counter: self.counter,
            session: self.session.parse().unwrap(),
            channel: 0,
            login: self.login.parse().unwrap(),
            certificate: self.certificate(),
            kind: self.channel.clone(),
            env: self.env.clone(),
            resume: self.resume,
        };
        open.seal(&key(self.signer)).unwrap()
    }

    fn judge_text(&mut self, signed: &SignedText) -> Result<Permit, Refusal> {
        let own: DeviceId = "gw-0042".parse().unwrap();
        let bundle = TrustBundle {
            version: 1,
            device: own.clone(),
            issued_at: Timestamp(0),
            user_cas: vec![public(CA)],
            broker_keys: vec![public(BROKER)],
            revoked_serials: vec![99],
        };
        let bundle = SignedText::seal(&key(BROKER), Purpose::Bundle, &bundle).unwrap();
        let record = TrustRecord { v: 1, signers: vec![public(BROKER)], bundle };
        let logins = [("diag".parse().unwrap(), "nobody".to_owned())].into();
        let facts = Facts {
            own: &own,
            trust: &Trust::load(&record, &own).unwrap(),
            clock: &self.clock,
            binding: &binding(1),
            logins: &logins,
            forward: &self.rules,
            remote_access: self.remote_access,
            open_channels: self.open_channels,
            max_channels: 4,
        };
        judge(signed, &facts, &mut self.gate)
    }

    fn judge(&mut self) -> Result<Permit, Refusal> {
        let signed = self.signed();
        self.judge_text(&signed)
    }

    /// Refused with `code`, for a cause that contains `cause`.
    #[track_caller]
    fn refused(mut self, code: RefusedCode, cause: &str) {
        let refusal = self.judge().expect_err("it must be refused");
        assert_eq!(refusal.told.code, code, "{}", refusal.cause);
        assert!(refusal.cause.contains(cause), "{:?} does not say {cause:?}", refusal.cause);
        if code == NotAuthorized {
            assert_eq!(refusal.told.message, "the device does not accept this session");
        }
    }
}

use RefusedCode::{Busy, KindForbidden, Malformed, NotAuthorized, SwitchedOff, UnknownLogin};

#[test]
fn a_session_certificate_for_this_device_opens_a_channel_on_its_terms() {
    let mut case = Case::default();
    let permit = case.judge().unwrap();
    assert_eq!(permit.user(), "nobody");
    assert_eq!(permit.person(), "ana@example.com");
    assert_eq!(permit.grant(), Some("R-7K2M9QXD"));
    assert_eq!(permit.valid_before().as_secs(), case.until.as_secs());
    case.counter = 2;
    case.channel = shell();
    assert!(case.judge().is_ok());
}

#[test]
fn a_certificate_from_a_foreign_ca_opens_nothing() {
    Case { ca: FOREIGN, ..Case::default() }.refused(NotAuthorized, "not a CA trusted here");
    Case { ca: BROKER, ..Case::default() }.refused(NotAuthorized, "not a CA trusted here");
}

#[test]
fn an_expired_certificate_opens_nothing() {
    Case { until: broker_time(), ..Case::default() }.refused(NotAuthorized, "ended at");
}

#[test]
fn a_certificate_that_is_not_yet_valid_opens_nothing() {
    Case { from: broker_time() + Duration::from_secs(5), ..Case::default() }
        .refused(NotAuthorized, "valid from");
}

#[test]
fn a_certificate_for_another_device_opens_nothing() {
    Case { principals: vec!["diag@gw-0043"], ..Case::default() }
        .refused(NotAuthorized, "needed diag@gw-0042");
}

#[test]
fn a_certificate_for_another_login_opens_nothing() {
    Case { principals: vec!["root@gw-0042"], ..Case::default() }
        .refused(NotAuthorized, "needed diag@gw-0042");
    Case { login: "root", ..Case::default() }.refused(NotAuthorized, "needed root@gw-0042");
}

#[test]
fn an_identity_certificate_opens_nothing() {
    Case { principals: vec!["P-7K2M9QXD"], ..Case::default() }.refused(NotAuthorized, "needed diag@gw-0042");
}

#[test]
fn a_host_certificate_opens_nothing() {
    Case { kind: CertType::Host, ..Case::default() }.refused(NotAuthorized, "host certificate");
}

#[test]
fn a_certificate_without_or_with_many_principals_opens_nothing() {
    Case { principals: vec![], ..Case::default() }.refused(NotAuthorized, "no principal");
    Case { principals: vec!["diag@gw-0042", "diag@gw-0043"], ..Case::default() }
        .refused(NotAuthorized, "2 principals");
}

#[test]
fn a_certificate_with_an_unknown_critical_option_opens_nothing() {
    Case { critical: vec![("verify-required", "")], ..Case::default() }
        .refused(NotAuthorized, "verify-required");
    Case { critical: vec![(SOURCE_ADDRESS, "0.0.0.0/0")], ..Case::default() }
        .refused(NotAuthorized, "unknown address");
}

#[test]
fn a_revoked_certificate_opens_nothing() {
    Case { serial: 99, ..Case::default() }.refused(NotAuthorized, "serial 99 was revoked");
    Case { serial: 0, ..Case::default() }.refused(NotAuthorized, "serial 0");
}

#[test]
fn a_certificate_without_its_key_opens_nothing() {
    Case { signer: FOREIGN, ..Case::default() }.refused(NotAuthorized, "not a key trusted");
    Case { signer: CA, ..Case::default() }.refused(NotAuthorized, "not a key trusted");
}

#[test]
fn an_open_whose_body_was_changed_opens_nothing() {
    let mut case = Case::default();
    let mut text: serde_json::Value = serde_json::to_value(case.signed()).unwrap();
    let body = text["body"].as_str().unwrap().replace("\"channel\":0", "\"channel\":1");
    assert_ne!(text["body"].as_str().unwrap(), body);
    text["body"] = body.into();
    let refusal = case.judge_text(&serde_json::from_value(text).unwrap()).unwrap_err();
    assert_eq!(refusal.told.code, NotAuthorized);
    assert!(refusal.cause.contains("does not match"), "{}", refusal.cause);
}

#[test]
fn a_replayed_open_opens_nothing() {
    let mut case = Case::default();
    let signed = case.signed();
    assert!(case.judge_text(&signed).is_ok());
    let again = case.judge_text(&signed).unwrap_err();
    assert_eq!(again.told.code, NotAuthorized);
    assert!(again.cause.contains("counter 1"), "{}", again.cause);
}

#[test]
fn a_counter_that_goes_back_opens_nothing() {
    let mut case = Case { counter: 10, ..Case::default() };
    assert!(case.judge().is_ok());
    case.counter = 9;
    assert_eq!(case.judge().unwrap_err().told.code, NotAuthorized);
    case.counter = 11;
    assert!(case.judge().is_ok());
}

#[test]
fn a_refused_open_uses_up_its_counter() {
    let mut case = Case { remote_access: false, ..Case::default() };
    let signed = case.signed();
    assert_eq!(case.judge_text(&signed).unwrap_err().told.code, SwitchedOff);
    case.remote_access = true;
    assert_eq!(case.judge_text(&signed).unwrap_err().told.code, NotAuthorized);
}

#[test]
fn an_open_that_is_not_authentic_does_not_use_up_a_counter() {
    let mut case = Case { signer: FOREIGN, counter: u64::MAX, ..Case::default() };
    assert!(case.judge().is_err());
    (case.signer, case.counter) = (SESSION, 1);
    assert!(case.judge().is_ok());
}

#[test]
fn an_open_made_for_another_tunnel_opens_nothing() {
    Case { tunnel: 2, ..Case::default() }.refused(NotAuthorized, "another tunnel");
}

#[test]
fn an_open_for_another_session_than_the_certificates_opens_nothing() {
    Case { session: "S-00000000", ..Case::default() }.refused(NotAuthorized, "another session");
    Case { key_id: "person=ana@example.com grant=R-7K2M9QXD", ..Case::default() }
        .refused(NotAuthorized, "another session");
}

#[test]
fn an_ended_session_stays_ended() {
    let mut case = Case::default();
    case.gate.end(&case.session.parse().unwrap());
    case.refused(NotAuthorized, "was ended");
}

#[test]
fn a_terminal_needs_its_permission() {
    Case { channel: shell(), extensions: vec![], ..Case::default() }.refused(KindForbidden, "terminal");
    let OpenKind::Shell { pty } = shell() else { unreachable!() };
    let channel = OpenKind::Exec { command: Octets(b"top".to_vec()), pty: Some(pty) };
    Case { channel, extensions: vec![], ..Case::default() }.refused(KindForbidden, "terminal");
    assert!(Case { extensions: vec![], ..Case::default() }.judge().is_ok(), "a command without one does not");
}

#[test]
fn promise_3_one_certificate_for_one_command_opens_no_shell_and_no_other_command() {
    let forced = || Case { critical: vec![(FORCE_COMMAND, "uptime")], ..Case::default() };
    assert!(forced().judge().is_ok());
    Case { channel: shell(), ..forced() }.refused(KindForbidden, "one command");
    Case { channel: exec("uptime; sh"), ..forced() }.refused(KindForbidden, "one command");
    Case { channel: exec(""), ..forced() }.refused(KindForbidden, "one command");
    Case { channel: OpenKind::Sftp, ..forced() }.refused(KindForbidden, "one command");
}

#[test]
fn promise_1_no_grant_no_bytes_sftp_needs_its_permission_in_the_certificate() {
    assert!(Case { channel: OpenKind::Sftp, ..Case::default() }.judge().is_ok());
    let extensions = vec![PERMIT_PTY, PERMIT_PORT_FORWARDING];
    Case { channel: OpenKind::Sftp, extensions, ..Case::default() }
        .refused(KindForbidden, "does not permit sftp");
}

fn forward(host: &str, port: u16) -> OpenKind {
    OpenKind::Forward { host: host.into(), port }
}

#[test]
fn promise_1_no_grant_no_bytes_a_forward_needs_the_permission_and_a_named_target() {
    let named = || vec![(FORWARD_TARGETS, "127.0.0.1:80,plc.local:502")];
    let to = |host, port| Case { critical: named(), channel: forward(host, port), ..Case::default() };
    let permit = to("localhost", 80).judge().unwrap();
    assert_eq!(permit.target().unwrap().to_string(), "127.0.0.1:80");
    assert!(to("::ffff:127.0.0.1", 80).judge().is_ok());
    for (host, port) in [("localhost", 81), ("127.0.0.1", 22), ("127.0.0.2", 80), ("plc.local", 80)] {
        to(host, port).refused(KindForbidden, "does not permit a forward");
    }
    to("127.1", 80).refused(Malformed, "not a target");
    Case { extensions: vec![PERMIT_PTY], ..to("localhost", 80) }
        .refused(KindForbidden, "does not permit a forward");
    Case { critical: vec![], ..to("localhost", 80) }.refused(KindForbidden, "does not permit a forward");
    Case { critical: vec![(FORWARD_TARGETS, "all")], ..to("localhost", 80) }
        .refused(NotAuthorized, "do not read");
}

#[test]
fn the_devices_owner_has_the_last_word_on_forwards() {
    let to = |host: &str, port, rules| Case {
        critical: vec![(FORWARD_TARGETS, "127.0.0.1:80,plc.local:502")],
        channel: forward(host, port),
        rules,
        ..Case::default()
    };
    to("plc.local", 502, Rules::default()).refused(KindForbidden, "device does not forward");
    let none = || Rules { loopback: false, ..Rules::default() };
    to("localhost", 80, none()).refused(KindForbidden, "device does not forward");
    let plc = Rules { targets: vec!["plc.local:502".parse().unwrap()], ..none() };
    assert!(to("plc.local", 502, plc).judge().is_ok());
}

#[test]
fn a_login_that_is_not_configured_is_not_served() {
    Case { login: "root", principals: vec!["root@gw-0042"], ..Case::default() }.refused(UnknownLogin, "root");
}

#[test]
fn a_device_that_is_switched_off_suspended_or_full_opens_nothing() {
    Case { remote_access: false, ..Case::default() }.refused(SwitchedOff, "switched off");
    let mut suspended = Case::default();
    suspended.gate.closed = Some("theft".into());
    suspended.refused(SwitchedOff, "theft");
    Case { open_channels: 4, ..Case::default() }.refused(Busy, "4 channels");
}

#[test]
fn what_does_not_read_is_malformed() {
    Case { channel: exec("a\0b"), ..Case::default() }.refused(Malformed, "zero byte");
    Case { version: 2, ..Case::default() }.refused(Malformed, "version 2");
    let long = vec![("LC_ALL".to_owned(), "x".repeat(MAX_ENV_VALUE + 1))];
    Case { env: long, ..Case::default() }.refused(Malformed, "too long");
    let many = vec![("LC_ALL".to_owned(), String::new()); MAX_ENV + 1];
    Case { env: many, ..Case::default() }.refused(Malformed, "33 environment");
    let garbage = SignedText::from_parts("{".into(), "x".into());
    assert_eq!(Case::default().judge_text(&garbage).unwrap_err().told.code, Malformed);
}

#[test]
fn years_of_a_wrong_device_clock_change_nothing() {
    // The wall clock is never read. What can be wrong is what was stored: nothing, as after a lost flash
    // page, or the time of years ago. The signed time of the hello decides alone.
    for stored in [Timestamp(0), broker_time() - Duration::from_hours(5 * 365 * 24)] {
        let clock = Clock::new(stored, || Duration::from_secs(3));
        clock.learn(broker_time());
        assert!(Case { clock, ..Case::default() }.judge().is_ok(), "a valid certificate is kept out");
        let clock = Clock::new(stored, || Duration::from_secs(3));
        clock.learn(broker_time());
        Case { clock, until: broker_time() - Duration::from_secs(1), from: Timestamp(0), ..Case::default() }
            .refused(NotAuthorized, "ended at");
    }
}

#[test]
fn time_goes_on_without_the_broker_and_an_accepted_certificate_moves_it() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let secs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&secs);
    let clock = Clock::new(Timestamp(0), move || Duration::from_secs(counter.load(Ordering::SeqCst)));
    clock.learn(broker_time());
    secs.store(601, Ordering::SeqCst);
    Case { clock, ..Case::default() }.refused(NotAuthorized, "ended at");

    let mut case = Case::default();
    assert!(case.judge().is_ok());
    assert!(case.clock.now() >= case.from);
}

#[test]
fn only_listed_variables_reach_a_process() {
    let given =
        [("LANG", "C"), ("LD_PRELOAD", "x"), ("DAYPASS_SESSION", "x"), ("TERM", "x"), ("LC_X", "a\0b")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let passed: Vec<_> = passed_env(&given).map(|(name, _)| name).collect();
    assert_eq!(passed, ["LANG"]);
}
