//! Keys and lengths outside the profile are refused wherever something is verified. The keys are ECDSA on
//! P-384, made by ssh-keygen: sound, and none of the two kinds that are accepted.
#![allow(non_snake_case, clippy::unwrap_used, reason = "tests, named for their promise")]

use daypass_protocol::bundle::{self, BundleError, MAX_REVOKED, TrustBundle};
use daypass_protocol::certificate::{Expectation, PERMIT_PTY, Principal, Refusal, verify, verify_openssh};
use daypass_protocol::signed::{self, Purpose, SignatureError, SignedText};
use daypass_protocol::ssh_key::certificate::Builder;
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{Certificate, PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;

const KEY: &str = include_str!("../vectors/p384.pub");
/// An Ed25519 key, certified by the key above.
const BY_THAT_CA: &str = include_str!("../vectors/p384-ca-cert.pub");
/// Of the text `x` for the purpose of a bundle, by the key above.
const SIGNATURE: &str = include_str!("../vectors/p384.sig");

fn p384() -> PublicKey {
    PublicKey::from_openssh(KEY).unwrap()
}

fn ca() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]))
}

fn expecting<'a>(cas: &'a [PublicKey], principal: &'a Principal) -> Expectation<'a> {
    let now = Timestamp::from_secs(1500);
    Expectation { cas, principal: Some(principal), now, source: None, revoked_serials: &[] }
}

fn minted(key: &PublicKey, extensions: &[&str]) -> Certificate {
    let mut builder = Builder::new([9; 16], key, 1000, 2000).unwrap();
    builder.serial(7).unwrap().key_id("person=ana@example.com").unwrap();
    builder.valid_principal("diag@gw-0042").unwrap();
    for name in extensions {
        builder.extension(*name, "").unwrap();
    }
    builder.sign(&ca()).unwrap()
}

#[test]
fn promise_3_one_certificate_one_device__a_ca_key_of_another_kind_is_no_ca_even_where_it_is_listed() {
    let principal: Principal = "diag@gw-0042".parse().unwrap();
    let refused = verify_openssh(BY_THAT_CA, &expecting(&[p384()], &principal)).unwrap_err();
    assert!(matches!(refused, Refusal::UnacceptableCa(_)), "{refused}");
}

#[test]
fn promise_3_one_certificate_one_device__a_certified_key_of_another_kind_is_refused() {
    let principal: Principal = "diag@gw-0042".parse().unwrap();
    let cas = [ca().public_key().clone()];
    let refused = verify(&minted(&p384(), &[]), &expecting(&cas, &principal)).unwrap_err();
    assert!(matches!(refused, Refusal::UnacceptableKey(_)), "{refused}");
}

#[test]
fn a_terminal_is_permitted_only_where_the_certificate_says_so() {
    let principal: Principal = "diag@gw-0042".parse().unwrap();
    let cas = [ca().public_key().clone()];
    let permits = |extensions: &[&str]| {
        verify(&minted(ca().public_key(), extensions), &expecting(&cas, &principal)).unwrap().permits_pty()
    };
    assert!(permits(&[PERMIT_PTY]));
    assert!(!permits(&[]));
}

#[test]
fn a_certificate_longer_than_16_kib_is_not_even_parsed() {
    let principal: Principal = "diag@gw-0042".parse().unwrap();
    let long = "x".repeat(16 * 1024 + 1);
    let refused = verify_openssh(&long, &expecting(&[], &principal)).unwrap_err();
    assert_eq!(refused, Refusal::Malformed("longer than 16 KiB".to_owned()));
}

#[test]
fn a_signature_by_a_key_of_another_kind_is_worthless_even_where_it_is_trusted() {
    let refused = signed::verify(&[p384()], Purpose::Bundle, b"x", SIGNATURE).unwrap_err();
    assert!(matches!(refused, SignatureError::UnknownKey { .. }), "{refused}");
}

#[test]
fn a_signature_longer_than_any_of_ours_is_not_even_parsed() {
    let refused = signed::verify(&[], Purpose::Bundle, b"x", &"x".repeat(4097)).unwrap_err();
    assert_eq!(refused, SignatureError::Malformed("longer than 4096 bytes".to_owned()));
}

fn opened(change: impl FnOnce(&mut TrustBundle)) -> Result<bundle::Trusted, BundleError> {
    let line = ca().public_key().to_openssh().unwrap();
    let mut made = TrustBundle {
        version: 1,
        device: "gw-0042".parse().unwrap(),
        issued_at: Timestamp(0),
        user_cas: vec![line.clone()],
        broker_keys: vec![line],
        revoked_serials: vec![],
    };
    change(&mut made);
    let signed = SignedText::seal(&ca(), Purpose::Bundle, &made).unwrap();
    bundle::open(&signed, &[ca().public_key().clone()], &"gw-0042".parse().unwrap(), 0)
}

#[test]
fn a_bundle_with_a_key_of_another_kind_or_with_too_many_revocations_is_refused() {
    assert!(opened(|_| {}).is_ok());
    let refused = opened(|made| made.user_cas.push(KEY.trim().to_owned())).unwrap_err();
    assert!(matches!(refused, BundleError::Key { .. }), "{refused}");
    assert!(opened(|made| made.revoked_serials = vec![7; MAX_REVOKED]).is_ok());
    let refused = opened(|made| made.revoked_serials = vec![7; MAX_REVOKED + 1]).unwrap_err();
    assert_eq!(refused, BundleError::TooManyRevoked);
}
