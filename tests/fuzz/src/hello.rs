//! The hello, `TUNNEL.md` sections 4 and 5: the challenge at the device, the hello at the broker.

use crate::input::Input;
use crate::programs::challenge::{HelloError, check_challenge};
use crate::programs::claim::Claim;
use daypass_protocol::signed::{Purpose, SignedText, sign};
use daypass_protocol::ssh_key::{PrivateKey, PublicKey, private::Ed25519Keypair};
use daypass_protocol::tunnel::hello::{
    Answer, Binding, Challenge, Conversation, Enrol, EnrolAsk, Enrolled, Hello, Welcome, decode_nonce,
    encode_nonce,
};

const EXPORTER: [u8; 32] = [1; 32];
const DEVICE_NONCE: [u8; 32] = [2; 32];
const BROKER_NONCE: [u8; 32] = [3; 32];

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

fn binding() -> Binding {
    Binding::new(Conversation::Tunnel, &EXPORTER, &DEVICE_NONCE, &BROKER_NONCE)
}

/// Nothing is believed but what the right key signed, for this purpose and this connection.
pub fn hello(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => strange(&input.rest_as_text()),
        1 => {
            let (signer, purpose) = signer(&mut input);
            let body = input.rest_as_text();
            challenged(&sealed(&body, signer, purpose), (signer, purpose, &body));
        }
        _ => {
            let (signer, purpose) = signer(&mut input);
            let body = input.rest_as_text();
            let text = serde_json::to_string(&sealed(&body, signer, purpose)).unwrap();
            claimed(&text, (signer, purpose, &body));
        }
    }
}

/// Key 4 is the right one.
fn signer(input: &mut Input<'_>) -> (u8, Purpose) {
    let signer = input.one_of(&[4, 4, 5]);
    (signer, input.one_of(&[Purpose::Challenge, Purpose::Hello, Purpose::Bundle, Purpose::Enrol]))
}

fn sealed(body: &str, signer: u8, purpose: Purpose) -> SignedText {
    let signature = sign(&key(signer), purpose, body.as_bytes()).unwrap();
    SignedText::from_parts(body.to_owned(), signature)
}

/// Text of whoever is at the other end, as either side takes it.
fn strange(text: &str) {
    if let Ok(signed) = serde_json::from_str::<SignedText>(text) {
        let trusted = [key(9).public_key().clone()];
        assert!(check_challenge(&signed, &trusted, Conversation::Tunnel, &EXPORTER, &DEVICE_NONCE).is_err());
        let _ = signed.unverified_signer();
    }
    if let Ok(claim) = Claim::read(text) {
        assert!(claim.prove(key(9).public_key(), &binding()).is_err());
    }
    if let Ok(Answer::Welcome(welcome)) = serde_json::from_str::<Answer<Welcome>>(text) {
        let again = serde_json::to_string(&Answer::Welcome(welcome.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Answer<Welcome>>(&again).unwrap(), Answer::Welcome(welcome));
    }
    let _ = serde_json::from_str::<Answer<Enrolled>>(text);
    if let Ok(ask) = serde_json::from_str::<EnrolAsk>(text)
        && let Ok(claimed) = ask.enrol.unverified_signer()
    {
        let _ = ask.enrol.open::<Enrol>(&[claimed], Purpose::Enrol, "an enrolment");
    }
    if let Some(nonce) = decode_nonce(text) {
        assert_eq!(encode_nonce(&nonce), text, "one spelling");
    }
}

fn challenged(signed: &SignedText, (signer, purpose, body): (u8, Purpose, &str)) {
    let trusted: [PublicKey; 1] = [key(4).public_key().clone()];
    match check_challenge(signed, &trusted, Conversation::Tunnel, &EXPORTER, &DEVICE_NONCE) {
        Ok(accepted) => {
            assert_eq!((signer, purpose), (4, Purpose::Challenge));
            let challenge: Challenge = serde_json::from_str(body).unwrap();
            let nonce = decode_nonce(&challenge.nonce).unwrap();
            let bound = Binding::new(Conversation::Tunnel, &EXPORTER, &DEVICE_NONCE, &nonce);
            assert_eq!((challenge.v, &challenge.binding, accepted.binding()), (1, &bound, &bound));
            assert_eq!(accepted.time(), challenge.time);
        }
        Err(HelloError::NotOurBroker(_)) => {}
        Err(_) => assert_eq!((signer, purpose), (4, Purpose::Challenge), "the signature comes first"),
    }
    // For the other conversation it is worth nothing.
    assert!(check_challenge(signed, &trusted, Conversation::Enrolment, &EXPORTER, &DEVICE_NONCE).is_err());
}

fn claimed(text: &str, (signer, purpose, body): (u8, Purpose, &str)) {
    let Ok(claim) = Claim::read(text) else { return };
    if let Ok(hello) = claim.prove(key(4).public_key(), &binding()) {
        assert_eq!((signer, purpose), (4, Purpose::Hello));
        assert_eq!(serde_json::from_str::<Hello>(body).unwrap(), hello);
        assert_eq!((hello.v, &hello.binding, &hello.device), (1, &binding(), claim.device()));
    }
    let elsewhere = Binding::new(Conversation::Tunnel, &[9; 32], &DEVICE_NONCE, &BROKER_NONCE);
    let both = [binding(), elsewhere].iter().all(|at| claim.prove(key(4).public_key(), at).is_ok());
    assert!(!both, "for one connection");
}
