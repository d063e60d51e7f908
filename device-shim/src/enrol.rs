//! `daypass-shim enrol`: a new device joins a fleet, `TUNNEL.md` section 5.

use crate::clock::{self, Clock};
use crate::config::Config;
use crate::hello::{HelloError, check_challenge};
use crate::link::{self, Endpoint, LinkError};
use crate::state::{Identity, StateDir, StateError, TrustRecord};
use crate::trust::{TrustError, read_keys};
use daypass_protocol::bundle::{self, BundleError};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::join::JoinToken;
use daypass_protocol::signed::{Purpose, SignatureError, SignedText, fingerprint};
use daypass_protocol::ssh_key::{Certificate, PublicKey};
use daypass_protocol::tunnel::hello::{Conversation, Enrol, EnrolAsk, Enrolled};

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(
        "this device is enrolled already, as {0}. Empty the state directory first if it shall start anew"
    )]
    Already(DeviceId),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(
        "signed by {found}, and the join token is for a broker with the key {pin}: not our broker, or somebody is in between. Nothing was told to it"
    )]
    WrongPin { found: String, pin: String },
    #[error("a signature failed: {0}")]
    Signature(#[from] SignatureError),
    #[error("the broker's trust bundle is not acceptable: {0}")]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the broker's answer is not consistent: {0}")]
    Answer(&'static str),
}

/// What the installer says about the device.
#[derive(Debug, Clone)]
pub struct NewDevice {
    pub serial_number: String,
    pub id: Option<DeviceId>,
}

/// Joins the fleet of the token, and stores who the device is now.
pub async fn enrol(config: &Config, token: &JoinToken, new: NewDevice) -> Result<Identity, EnrolError> {
    let state = StateDir::new(&config.state_dir);
    state.create()?;
    let _lock = state.lock()?;
    if state.is_enrolled() {
        return Err(EnrolError::Already(state.identity()?.device));
    }
    let key = state.key_to_enrol()?;
    let public_key = key.public_key().to_openssh().map_err(|e| SignatureError::Malformed(e.to_string()))?;

    let url = config.broker_url.as_ref().unwrap_or(&token.broker_url);
    let what = Conversation::Enrolment;
    let mut link = link::connect(&Endpoint::parse(url)?, config.proxy.as_ref(), what).await?;
    let challenge: SignedText = link.hear().await?;
    // The pin names the key; only then its signature, and the connection, mean anything.
    let broker_key = challenge.unverified_signer().map_err(HelloError::NotOurBroker)?;
    if fingerprint(&broker_key) != token.broker_pin {
        return Err(EnrolError::WrongPin { found: fingerprint(&broker_key), pin: token.broker_pin.clone() });
    }
    let pinned = [broker_key];
    let accepted = check_challenge(&challenge, &pinned, what, &link.exporter, &link.nonce)?;

    let enrol = Enrol {
        v: 1,
        binding: accepted.binding().clone(),
        public_key,
        serial_number: new.serial_number.clone(),
        device: new.id,
        product_line: None,
        shim_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let enrol = SignedText::seal(&key, Purpose::Enrol, &enrol)?;
    link.say(&EnrolAsk { v: 1, secret: token.secret.clone(), enrol }).await?;
    let answer: Enrolled = link.hear_answer().await?;
    let record = check_answer(&answer, &pinned, key.public_key())?;

    let clock = Clock::new(state.time()?, clock::boottime);
    clock.learn(accepted.time());
    state.store_time(clock.now())?;
    state.store_trust(&record)?;
    let identity = Identity {
        v: 1,
        device: answer.device,
        serial_number: new.serial_number,
        broker_url: token.broker_url.clone(),
        host_certificate: answer.host_certificate,
    };
    state.forget_retirement()?;
    // Last: with this file the device is enrolled.
    state.store_identity(&identity)?;
    Ok(identity)
}

/// The parts of the answer have to agree with each other, with the pin and with the device key.
fn check_answer(answer: &Enrolled, pinned: &[PublicKey], own: &PublicKey) -> Result<TrustRecord, EnrolError> {
    if answer.v != 1 {
        return Err(EnrolError::Answer("it has another version"));
    }
    let trusted = bundle::open(&answer.bundle, pinned, &answer.device, 0)?;
    let named = read_keys(&answer.broker_keys)?;
    let holds = |keys: &[PublicKey], key: &PublicKey| keys.iter().any(|k| k.key_data() == key.key_data());
    if !named.iter().all(|key| holds(&trusted.broker_keys, key))
        || !trusted.broker_keys.iter().all(|key| holds(&named, key))
    {
        return Err(EnrolError::Answer("its broker keys are not those of its bundle"));
    }
    let certificate = Certificate::from_openssh(&answer.host_certificate)
        .map_err(|_| EnrolError::Answer("its host certificate does not read"))?;
    if certificate.public_key() != own.key_data() {
        return Err(EnrolError::Answer("its host certificate is for another key"));
    }
    let signers = pinned.iter().map(PublicKey::to_openssh).collect::<Result<_, _>>();
    let signers = signers.map_err(|error| SignatureError::Malformed(error.to_string()))?;
    Ok(TrustRecord { v: 1, signers, bundle: answer.bundle.clone() })
}

/// The serial number that the hardware states, where it does.
pub fn hardware_serial() -> Option<String> {
    ["/sys/firmware/devicetree/base/serial-number", "/sys/class/dmi/id/product_serial"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
        .find(|text| !text.is_empty())
}
