//! The verifier that gateway and shim share, and the trust bundle that says which CAs it trusts.

use crate::input::Input;
use daypass_protocol::bundle::{self, MAX_KEYS, MAX_REVOKED, TrustBundle, Trusted};
use daypass_protocol::certificate::{
    Expectation, FORCE_COMMAND, FORWARD_TARGETS, KeyId, PERMIT_PORT_FORWARDING, PERMIT_PTY, PERMIT_SFTP,
    Principal, SOURCE_ADDRESS, Verified, verify, verify_openssh,
};
use daypass_protocol::signed::{Purpose, SignedText, is_acceptable_key, sign};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::{Certificate, PrivateKey, PublicKey, private::Ed25519Keypair};
use daypass_protocol::time::Timestamp;
use std::sync::OnceLock;

const CA: u8 = 1;
const OTHER_CA: u8 = 2;
const FOREIGN: u8 = 3;
const SESSION: u8 = 6;
const BROKER: u8 = 4;
const NOW: u64 = 1500;
const REVOKED: u64 = 99;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

/// Nothing passes that is not of the profile, and everything does that is.
pub fn certificate(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 5 {
        0 => raw(input.rest()),
        1 => text(&input.rest_as_text()),
        2 => bundle(&mut input),
        _ => minted(&mut input),
    }
}

/// The bundle of a device.
fn trusted() -> Trusted {
    let line = |seed| key(seed).public_key().to_openssh().unwrap();
    let body = TrustBundle {
        version: 7,
        device: "gw-0042".parse().unwrap(),
        issued_at: Timestamp(0),
        user_cas: vec![line(CA), line(OTHER_CA)],
        broker_keys: vec![line(BROKER)],
        revoked_serials: vec![REVOKED],
    };
    let signed = SignedText::seal(&key(BROKER), Purpose::Bundle, &body).unwrap();
    bundle::open(&signed, &[key(BROKER).public_key().clone()], &body.device, body.version).unwrap()
}

/// What is verified against.
fn with_trust<R>(act: impl FnOnce(&Expectation<'_>) -> R) -> R {
    static TRUSTED: OnceLock<Trusted> = OnceLock::new();
    let trusted = TRUSTED.get_or_init(trusted);
    let principal: Principal = "diag@gw-0042".parse().unwrap();
    act(&Expectation {
        cas: &trusted.user_cas,
        principal: Some(&principal),
        now: Timestamp::from_secs(NOW),
        source: Some("192.0.2.7".parse().unwrap()),
        revoked_serials: &trusted.bundle.revoked_serials,
    })
}

/// What must be true of every certificate that passed.
fn holds(certificate: &Certificate, verified: &Verified, expect: &Expectation<'_>) {
    let ca = PublicKey::from(certificate.signature_key().clone());
    assert!(expect.cas.iter().any(|trusted| trusted.key_data() == ca.key_data()) && is_acceptable_key(&ca));
    assert!(is_acceptable_key(verified.public_key()));
    assert_eq!(verified.public_key().key_data(), certificate.public_key());
    assert_eq!(certificate.cert_type(), CertType::User);
    assert!(certificate.valid_after() <= NOW && NOW < certificate.valid_before());
    assert_eq!(verified.valid_before(), Timestamp::from_secs(certificate.valid_before()));
    let principals = certificate.valid_principals();
    assert_eq!(principals, [verified.principal().to_string()]);
    match expect.principal {
        Some(needed) => assert_eq!(needed, verified.principal()),
        None => assert!(matches!(verified.principal(), Principal::Person(_))),
    }
    assert!(certificate.serial() != 0 && !expect.revoked_serials.contains(&certificate.serial()));
    assert_eq!(verified.serial(), certificate.serial());
    assert_eq!(KeyId::parse(certificate.key_id()).as_ref(), Some(verified.key_id()));
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            FORCE_COMMAND => assert_eq!(verified.force_command(), Some(value.as_str())),
            SOURCE_ADDRESS => assert!(expect.source.is_some()),
            FORWARD_TARGETS => {}
            unknown => panic!("{unknown:?} passed"),
        }
    }
    let has = |name: &str| certificate.extensions().iter().any(|(have, _)| have == name);
    assert_eq!(
        (has(PERMIT_PTY), has(PERMIT_SFTP), has(PERMIT_PORT_FORWARDING)),
        (verified.permits_pty(), verified.permits_sftp(), verified.permits_port_forwarding())
    );
}

fn check(certificate: &Certificate) -> bool {
    with_trust(|expect| {
        let as_person = Expectation { principal: None, ..*expect };
        if let Ok(verified) = verify(certificate, &as_person) {
            holds(certificate, &verified, &as_person);
        }
        let verified = verify(certificate, expect);
        if let Ok(verified) = &verified {
            holds(certificate, verified, expect);
        }
        verified.is_ok()
    })
}

fn raw(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::from_bytes(bytes) {
        check(&certificate);
    }
}

fn text(line: &str) {
    let passes = with_trust(|expect| verify_openssh(line, expect).is_ok());
    match Certificate::from_openssh(line) {
        Ok(certificate) => assert_eq!(passes, check(&certificate) && line.len() <= 16 * 1024),
        Err(_) => assert!(!passes),
    }
}

/// A certificate that a CA really signed, with what should never be in one.
fn minted(input: &mut Input<'_>) {
    let signer = input.one_of(&[CA, OTHER_CA, CA, FOREIGN]);
    let kind = input.one_of(&[CertType::User, CertType::User, CertType::Host]);
    let (from, until) = match input.byte() % 4 {
        0 | 1 => (NOW - 500, NOW + 500),
        2 => (input.one_of(&[NOW - 1, NOW, NOW + 1]), input.one_of(&[NOW - 1, NOW, NOW + 1])),
        _ => (input.number(), input.number()),
    };
    let serial = match input.byte() % 4 {
        0 | 1 => 7,
        2 => input.one_of(&[0, REVOKED, u64::MAX]),
        _ => input.number(),
    };
    let Ok(mut builder) = Builder::new([9; 16], key(SESSION).public_key(), from, until) else { return };
    let made = builder.serial(serial).and_then(|builder| builder.cert_type(kind)).is_ok();
    let key_id = match input.byte() % 3 {
        0 | 1 => "person=ana@example.com grant=R-7K2M9QXD session=S-7K2M9QXD".to_owned(),
        _ => input.text(),
    };
    if !made || builder.key_id(key_id.as_str()).is_err() {
        return;
    }
    let mut principals = Vec::new();
    for _ in 0..input.one_of(&[1, 1, 1, 0, 2, 3]) {
        principals.push(match input.byte() % 6 {
            0..=2 => "diag@gw-0042".to_owned(),
            3 => "P-7K2M9QXD".to_owned(),
            4 => "root@gw-0042".to_owned(),
            _ => input.text(),
        });
    }
    for principal in &principals {
        if builder.valid_principal(principal.as_str()).is_err() {
            return;
        }
    }
    if principals.is_empty() && builder.all_principals_valid().is_err() {
        return;
    }
    let mut plain = true;
    for _ in 0..input.byte() % 4 {
        let name = match input.byte() % 5 {
            0 => FORCE_COMMAND.to_owned(),
            1 => SOURCE_ADDRESS.to_owned(),
            2 => FORWARD_TARGETS.to_owned(),
            3 => PERMIT_PTY.to_owned(),
            _ => input.text(),
        };
        let value = input.text();
        plain &= name == FORCE_COMMAND;
        if builder.critical_option(name, value).is_err() {
            return;
        }
    }
    for _ in 0..input.byte() % 4 {
        let known = [PERMIT_PTY, PERMIT_SFTP, PERMIT_PORT_FORWARDING, FORCE_COMMAND];
        let name = if input.flag() { input.text() } else { input.one_of(&known).to_owned() };
        if builder.extension(name, "").is_err() {
            return;
        }
    }
    let Ok(certificate) = builder.sign(&key(signer)) else { return };
    let passes = check(&certificate);
    let good = signer != FOREIGN
        && kind == CertType::User
        && from <= NOW
        && NOW < until
        && i64::try_from(until).is_ok_and(|until| until <= i64::MAX / 1000)
        && principals == ["diag@gw-0042"]
        && serial != 0
        && serial != REVOKED
        && KeyId::parse(&key_id).is_some();
    assert!(!passes || good);
    assert!(passes || !good || !plain, "one of the profile passes");

    // One bit changed anywhere, and it opens nothing.
    let mut bytes = certificate.to_bytes().unwrap();
    let at = usize::try_from(input.number()).unwrap_or_default() % bytes.len();
    bytes[at] ^= 1 << (input.byte() % 8);
    if let Ok(changed) = Certificate::from_bytes(&bytes) {
        assert!(!check(&changed), "a bit of byte {at} was changed");
    }
}

/// A bundle whose body is anybody's, signed by the broker or by somebody else.
fn bundle(input: &mut Input<'_>) {
    let signer = input.one_of(&[BROKER, BROKER, FOREIGN]);
    let purpose = input.one_of(&[Purpose::Bundle, Purpose::Bundle, Purpose::Challenge]);
    let held = u64::from(input.byte());
    let body = input.rest_as_text();
    let signature = sign(&key(signer), purpose, body.as_bytes()).unwrap();
    let signed = SignedText::from_parts(body.clone(), signature);
    let own = "gw-0042".parse().unwrap();
    if let Ok(trusted) = bundle::open(&signed, &[key(BROKER).public_key().clone()], &own, held) {
        assert_eq!((signer, purpose), (BROKER, Purpose::Bundle));
        assert_eq!(serde_json::from_str::<TrustBundle>(&body).unwrap(), trusted.bundle);
        assert!(trusted.bundle.device == own && trusted.bundle.version >= held);
        assert!(trusted.bundle.revoked_serials.len() <= MAX_REVOKED);
        for keys in [&trusted.user_cas, &trusted.broker_keys] {
            assert!((1..=MAX_KEYS).contains(&keys.len()) && keys.iter().all(is_acceptable_key));
        }
    }
}
