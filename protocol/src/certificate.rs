//! The certificate profile, and the verifier that the gateway and the shim share.
//!
//! Certificates are OpenSSH certificates (draft-miller-ssh-cert). What Daypass adds is how narrow they
//! are: exactly one principal, a serial that is never 0, a readable key id, a window that ends with the
//! grant. [`verify`] answers for all of it and returns a [`Verified`] that nothing else can make.

use crate::ids::{DeviceId, Login, PersonId, RequestId, SessionId};
use crate::signed::is_acceptable_key;
use crate::ssh_key::certificate::CertType;
use crate::ssh_key::{Certificate, HashAlg, PublicKey};
use crate::target::{ForwardTarget, InvalidTarget};
use crate::time::Timestamp;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Critical option: the one command the holder may run (sshd_config(5), ForceCommand).
pub const FORCE_COMMAND: &str = "force-command";
/// Critical option: comma-separated networks the holder may come from.
pub const SOURCE_ADDRESS: &str = "source-address";
/// Critical option of our own, PROTOCOL.certkeys style: where forwards may lead, as targets with a comma
/// between them. Critical, so that who does not know it does not take the permission below without its bound.
pub const FORWARD_TARGETS: &str = "forward-targets@daypass";
/// Extension: a PTY may be asked for.
pub const PERMIT_PTY: &str = "permit-pty";
/// Extension: TCP forwarding may be asked for.
pub const PERMIT_PORT_FORWARDING: &str = "permit-port-forwarding";
/// Extension of our own: the SFTP subsystem may be asked for. sshd knows nothing of it and passes over it.
pub const PERMIT_SFTP: &str = "permit-sftp@daypass";

/// What a verifier expects a certificate to be; the one principal it must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// An identity certificate: a person, to the gateway.
    Person(PersonId),
    /// A session or on-site certificate: one login on one device.
    LoginOnDevice(Login, DeviceId),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person(person) => write!(f, "{person}"),
            Self::LoginOnDevice(login, device) => write!(f, "{login}@{device}"),
        }
    }
}

impl FromStr for Principal {
    type Err = crate::ids::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((login, device)) => Ok(Self::LoginOnDevice(login.parse()?, device.parse()?)),
            None => Ok(Self::Person(text.parse()?)),
        }
    }
}

/// The readable key id: `person=ana@example.com grant=R-7K2M9QXD session=S-0GJ5V2KQ`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// E-mail address, or the subject where there is none; no white space.
    pub person: String,
    pub grant: Option<RequestId>,
    pub session: Option<SessionId>,
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let person: String = self.person.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        write!(f, "person={person}")?;
        if let Some(grant) = &self.grant {
            write!(f, " grant={grant}")?;
        }
        if let Some(session) = &self.session {
            write!(f, " session={session}")?;
        }
        Ok(())
    }
}

impl KeyId {
    /// Reads a key id of this profile; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = Self { person: String::new(), grant: None, session: None };
        for part in text.split(' ') {
            match part.split_once('=')? {
                ("person", person) => person.clone_into(&mut id.person),
                ("grant", grant) => id.grant = Some(grant.parse().ok()?),
                ("session", session) => id.session = Some(session.parse().ok()?),
                _ => return None,
            }
        }
        (!id.person.is_empty()).then_some(id)
    }
}

/// Why a certificate opens nothing. The words are for the log; the far side learns only that it was
/// refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the certificate does not read: {0}")]
    Malformed(String),
    #[error("signed by {found}, which is not a CA trusted here")]
    ForeignCa { found: String },
    #[error("the CA key is of type {0}, which is not accepted as a CA")]
    UnacceptableCa(String),
    #[error("the certificate's own key is of type {0}, which is not accepted")]
    UnacceptableKey(String),
    #[error("the CA's signature does not verify")]
    BadSignature,
    #[error("a {found} certificate where a user certificate is needed")]
    WrongType { found: &'static str },
    #[error("valid from {from}, and it is {now}")]
    NotYetValid { from: Timestamp, now: Timestamp },
    #[error("ended at {ended}, and it is {now}")]
    Expired { ended: Timestamp, now: Timestamp },
    #[error("the validity window is empty or without end")]
    BadWindow,
    #[error("no principal: such a certificate would open everything")]
    NoPrincipal,
    #[error("{count} principals: exactly one is allowed")]
    ManyPrincipals { count: usize },
    #[error("for {found:?}, needed {needed}")]
    WrongPrincipal { found: String, needed: String },
    #[error("serial 0")]
    NoSerial,
    #[error("the key id does not follow the profile")]
    BadKeyId,
    #[error("critical option {0:?} is not known here")]
    UnknownCriticalOption(String),
    #[error("source-address {0:?} does not read as a list of networks")]
    BadSourceAddress(String),
    #[error("the forward targets do not read: {0}")]
    BadForwardTargets(#[from] InvalidTarget),
    #[error("not allowed from {0}")]
    WrongSource(String),
    #[error("serial {0} was revoked")]
    Revoked(u64),
}

/// What the verifier knows and needs.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The CA keys of the one right kind; never the union of several kinds.
    pub cas: &'a [PublicKey],
    /// The one principal; `None` only where the caller learns the person from the certificate, as the
    /// gateway does, and then it must still be a [`Principal::Person`].
    pub principal: Option<&'a Principal>,
    /// Trusted time.
    pub now: Timestamp,
    /// Where the holder connects from; `None` refuses any certificate with `source-address`.
    pub source: Option<IpAddr>,
    pub revoked_serials: &'a [u64],
}

/// A certificate that passed every check of [`verify`]; there is no other way to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    principal: Principal,
    key_id: KeyId,
    serial: u64,
    valid_after: Timestamp,
    valid_before: Timestamp,
    force_command: Option<String>,
    permit_pty: bool,
    permit_port_forwarding: bool,
    forward_targets: Vec<ForwardTarget>,
    permit_sftp: bool,
    public_key: PublicKey,
}

impl Verified {
    pub fn principal(&self) -> &Principal {
        &self.principal
    }
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }
    pub fn serial(&self) -> u64 {
        self.serial
    }
    pub fn valid_after(&self) -> Timestamp {
        self.valid_after
    }
    pub fn valid_before(&self) -> Timestamp {
        self.valid_before
    }
    pub fn force_command(&self) -> Option<&str> {
        self.force_command.as_deref()
    }
    pub fn permits_pty(&self) -> bool {
        self.permit_pty
    }
    pub fn permits_port_forwarding(&self) -> bool {
        self.permit_port_forwarding
    }
    /// Whether a forward may lead there: with the permission, and to a target that is named.
    pub fn permits_forward_to(&self, target: &ForwardTarget) -> bool {
        self.permit_port_forwarding && self.forward_targets.contains(target)
    }
    pub fn permits_sftp(&self) -> bool {
        self.permit_sftp
    }
    /// The certified key: what must have signed.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

/// Runs every check of the profile on a user certificate, in the order of the variants of [`Refusal`].
pub fn verify(certificate: &Certificate, expect: &Expectation<'_>) -> Result<Verified, Refusal> {
    let ca = PublicKey::from(certificate.signature_key().clone());
    if !is_acceptable_key(&ca) {
        return Err(Refusal::UnacceptableCa(ca.algorithm().to_string()));
    }
    if !expect.cas.iter().any(|trusted| trusted.key_data() == ca.key_data()) {
        return Err(Refusal::ForeignCa { found: ca.fingerprint(HashAlg::Sha256).to_string() });
    }
    let public_key = PublicKey::from(certificate.public_key().clone());
    if !is_acceptable_key(&public_key) {
        return Err(Refusal::UnacceptableKey(public_key.algorithm().to_string()));
    }
    certificate.verify_signature().map_err(|_| Refusal::BadSignature)?;
    if certificate.cert_type() != CertType::User {
        return Err(Refusal::WrongType { found: "host" });
    }

    // draft-miller-ssh-cert: valid after <= now < valid before, in seconds.
    let (from, until, now) = (certificate.valid_after(), certificate.valid_before(), expect.now.as_secs());
    // Past this no Timestamp exists; OpenSSH writes "forever" as the greatest u64.
    if from >= until || until > (i64::MAX / 1000) as u64 {
        return Err(Refusal::BadWindow);
    }
    if now < from {
        return Err(Refusal::NotYetValid { from: Timestamp::from_secs(from), now: expect.now });
    }
    if now >= until {
        return Err(Refusal::Expired { ended: Timestamp::from_secs(until), now: expect.now });
    }

    let principal = match certificate.valid_principals() {
        [] => return Err(Refusal::NoPrincipal),
        [one] => one,
        many => return Err(Refusal::ManyPrincipals { count: many.len() }),
    };
    let wrong =
        |needed: String| Refusal::WrongPrincipal { found: principal.chars().take(128).collect(), needed };
    let principal = match expect.principal {
        Some(needed) if *principal == needed.to_string() => needed.clone(),
        Some(needed) => return Err(wrong(needed.to_string())),
        None => match principal.parse() {
            Ok(person @ Principal::Person(_)) => person,
            _ => return Err(wrong("a person".to_owned())),
        },
    };

    if certificate.serial() == 0 {
        return Err(Refusal::NoSerial);
    }
    let key_id = KeyId::parse(certificate.key_id()).ok_or(Refusal::BadKeyId)?;

    let mut force_command = None;
    let mut forward_targets = Vec::new();
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            FORCE_COMMAND => force_command = Some(value.clone()),
            FORWARD_TARGETS => forward_targets = ForwardTarget::list(value)?,
            SOURCE_ADDRESS => check_source(value, expect.source)?,
            unknown => {
                return Err(Refusal::UnknownCriticalOption(unknown.chars().take(64).collect()));
            }
        }
    }
    if expect.revoked_serials.contains(&certificate.serial()) {
        return Err(Refusal::Revoked(certificate.serial()));
    }

    let extension = |name: &str| certificate.extensions().iter().any(|(have, _)| have == name);
    Ok(Verified {
        principal,
        key_id,
        serial: certificate.serial(),
        valid_after: Timestamp::from_secs(from),
        valid_before: Timestamp::from_secs(until),
        force_command,
        permit_pty: extension(PERMIT_PTY),
        permit_port_forwarding: extension(PERMIT_PORT_FORWARDING),
        forward_targets,
        permit_sftp: extension(PERMIT_SFTP),
        public_key,
    })
}

/// Reads the one-line OpenSSH form, bounded, and verifies it.
pub fn verify_openssh(text: &str, expect: &Expectation<'_>) -> Result<Verified, Refusal> {
    if text.len() > 16 * 1024 {
        return Err(Refusal::Malformed("longer than 16 KiB".to_owned()));
    }
    let certificate =
        Certificate::from_openssh(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
    verify(&certificate, expect)
}

fn check_source(list: &str, source: Option<IpAddr>) -> Result<(), Refusal> {
    let bad = || Refusal::BadSourceAddress(list.chars().take(128).collect());
    let mut allowed = false;
    for part in list.split(',') {
        let network = part
            .parse::<ipnet::IpNet>()
            .or_else(|_| part.parse::<IpAddr>().map(ipnet::IpNet::from))
            .map_err(|_| bad())?;
        allowed |= source.is_some_and(|source| network.contains(&source.to_canonical()));
    }
    if allowed {
        Ok(())
    } else {
        Err(Refusal::WrongSource(source.map_or_else(|| "an unknown address".to_owned(), |ip| ip.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_key::PrivateKey;
    use crate::ssh_key::certificate::Builder;
    use crate::ssh_key::private::Ed25519Keypair;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    const GOOD_ID: &str = "person=ana@example.com grant=R-7K2M9QXD session=S-7K2M9QXD";

    struct Case {
        ca: u8,
        kind: CertType,
        principals: Vec<&'static str>,
        window: (u64, u64),
        serial: u64,
        key_id: &'static str,
        critical: Vec<(&'static str, &'static str)>,
        extensions: Vec<&'static str>,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                ca: 1,
                kind: CertType::User,
                principals: vec!["diag@gw-0042"],
                window: (1000, 2000),
                serial: 7,
                key_id: GOOD_ID,
                critical: vec![],
                extensions: vec![PERMIT_PTY],
            }
        }
    }

    impl Case {
        fn mint(&self) -> Certificate {
            let mut builder =
                Builder::new([9; 16], key(3).public_key(), self.window.0, self.window.1).unwrap();
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
            builder.sign(&key(self.ca)).unwrap()
        }

        fn verify_at(&self, now: u64) -> Result<Verified, Refusal> {
            let cas = [key(1).public_key().clone()];
            let needed: Principal = "diag@gw-0042".parse().unwrap();
            verify(
                &self.mint(),
                &Expectation {
                    cas: &cas,
                    principal: Some(&needed),
                    now: Timestamp::from_secs(now),
                    source: Some("192.0.2.7".parse().unwrap()),
                    revoked_serials: &[99],
                },
            )
        }

        fn verify(&self) -> Result<Verified, Refusal> {
            self.verify_at(1500)
        }
    }

    #[test]
    fn a_certificate_of_the_profile_is_verified_with_its_terms() {
        let verified =
            Case { critical: vec![(FORCE_COMMAND, "uptime")], ..Case::default() }.verify().unwrap();
        assert_eq!(verified.force_command(), Some("uptime"));
        assert!(verified.permits_pty() && !verified.permits_port_forwarding());
        assert_eq!(verified.key_id().to_string(), GOOD_ID);
        assert_eq!(verified.serial(), 7);
    }

    #[test]
    fn a_certificate_from_a_foreign_ca_is_refused() {
        assert!(matches!(Case { ca: 2, ..Case::default() }.verify(), Err(Refusal::ForeignCa { .. })));
    }

    #[test]
    fn a_host_certificate_is_refused() {
        assert!(matches!(
            Case { kind: CertType::Host, ..Case::default() }.verify(),
            Err(Refusal::WrongType { .. })
        ));
    }

    #[test]
    fn a_certificate_outside_its_window_is_refused() {
        let case = Case::default();
        assert!(matches!(case.verify_at(999), Err(Refusal::NotYetValid { .. })));
        assert!(case.verify_at(1000).is_ok());
        assert!(case.verify_at(1999).is_ok());
        assert!(matches!(case.verify_at(2000), Err(Refusal::Expired { .. })));
    }

    #[test]
    fn a_certificate_without_end_is_refused() {
        assert_eq!(
            Case { window: (1000, i64::MAX as u64), ..Case::default() }.verify(),
            Err(Refusal::BadWindow)
        );
    }

    #[test]
    fn a_certificate_for_another_device_is_refused() {
        let other = Case { principals: vec!["diag@gw-0043"], ..Case::default() };
        assert!(matches!(other.verify(), Err(Refusal::WrongPrincipal { .. })));
    }

    #[test]
    fn a_certificate_for_another_login_is_refused() {
        let other = Case { principals: vec!["root@gw-0042"], ..Case::default() };
        assert!(matches!(other.verify(), Err(Refusal::WrongPrincipal { .. })));
    }

    #[test]
    fn an_empty_principal_list_is_refused() {
        assert_eq!(Case { principals: vec![], ..Case::default() }.verify(), Err(Refusal::NoPrincipal));
    }

    #[test]
    fn two_principals_are_refused_even_when_one_fits() {
        let two = Case { principals: vec!["diag@gw-0042", "root@gw-0042"], ..Case::default() };
        assert_eq!(two.verify(), Err(Refusal::ManyPrincipals { count: 2 }));
    }

    #[test]
    fn a_principal_with_a_comma_is_one_principal_and_does_not_fit() {
        let comma = Case { principals: vec!["diag@gw-0042,root@gw-0042"], ..Case::default() };
        assert!(matches!(comma.verify(), Err(Refusal::WrongPrincipal { .. })));
    }

    #[test]
    fn an_unknown_critical_option_is_refused() {
        let unknown = Case { critical: vec![("verify-required", "")], ..Case::default() };
        assert_eq!(unknown.verify(), Err(Refusal::UnknownCriticalOption("verify-required".into())));
    }

    #[test]
    fn promise_1_no_grant_no_bytes_forwards_lead_to_the_named_targets_only() {
        let named = [(FORWARD_TARGETS, "127.0.0.1:80,plc.local:502")];
        let to = |case: &Case, host, port| {
            case.verify().unwrap().permits_forward_to(&ForwardTarget::new(host, port).unwrap())
        };
        let extensions = || vec![PERMIT_PORT_FORWARDING];
        let case = Case { critical: named.to_vec(), extensions: extensions(), ..Case::default() };
        assert!(
            to(&case, "localhost", 80) && to(&case, "::ffff:127.0.0.1", 80) && to(&case, "plc.local", 502)
        );
        assert!(!to(&case, "127.0.0.1", 81) && !to(&case, "127.0.0.2", 80) && !to(&case, "plc.local", 80));
        let unpermitted = Case { critical: named.to_vec(), ..Case::default() };
        assert!(!to(&unpermitted, "127.0.0.1", 80), "targets without the permission are nothing");
        let unnamed = Case { extensions: extensions(), ..Case::default() };
        assert!(!to(&unnamed, "127.0.0.1", 80), "nor is the permission without targets");
        for bad in ["", "127.0.0.1", "127.0.0.1:80,", "*:80", "127.0.0.1:*"] {
            let case = Case { critical: vec![(FORWARD_TARGETS, bad)], ..Case::default() };
            assert!(matches!(case.verify(), Err(Refusal::BadForwardTargets(_))), "{bad:?}");
        }
    }

    #[test]
    fn source_address_is_held_to() {
        let with = |list| Case { critical: vec![(SOURCE_ADDRESS, list)], ..Case::default() }.verify();
        assert!(with("192.0.2.0/24,2001:db8::/32").is_ok());
        assert!(with("192.0.2.7").is_ok());
        assert!(matches!(with("198.51.100.0/24"), Err(Refusal::WrongSource(_))));
        assert!(matches!(with("192.0.2.0/24,nonsense"), Err(Refusal::BadSourceAddress(_))));
        assert!(matches!(with(""), Err(Refusal::BadSourceAddress(_))));
    }

    #[test]
    fn a_revoked_serial_and_serial_zero_are_refused() {
        assert_eq!(Case { serial: 99, ..Case::default() }.verify(), Err(Refusal::Revoked(99)));
        assert_eq!(Case { serial: 0, ..Case::default() }.verify(), Err(Refusal::NoSerial));
    }

    #[test]
    fn a_key_id_outside_the_profile_is_refused() {
        for bad in ["", "ana", "grant=R-7K2M9QXD", "person=a session=nonsense", "person=a colour=red"] {
            assert_eq!(Case { key_id: bad, ..Case::default() }.verify(), Err(Refusal::BadKeyId), "{bad:?}");
        }
    }

    #[test]
    fn a_flipped_signature_bit_is_refused() {
        let mut bytes = Case::default().mint().to_bytes().unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let Ok(forged) = Certificate::from_bytes(&bytes) else { return };
        let cas = [key(1).public_key().clone()];
        let expect = Expectation {
            cas: &cas,
            principal: None,
            now: Timestamp::from_secs(1500),
            source: None,
            revoked_serials: &[],
        };
        assert_eq!(verify(&forged, &expect), Err(Refusal::BadSignature));
    }

    #[test]
    fn without_a_named_principal_only_a_person_passes() {
        let cas = [key(1).public_key().clone()];
        let expect = Expectation {
            cas: &cas,
            principal: None,
            now: Timestamp::from_secs(1500),
            source: None,
            revoked_serials: &[],
        };
        let person = Case { principals: vec!["P-7K2M9QXD"], ..Case::default() };
        assert!(verify(&person.mint(), &expect).is_ok());
        assert!(matches!(verify(&Case::default().mint(), &expect), Err(Refusal::WrongPrincipal { .. })));
    }

    #[test]
    fn garbage_is_malformed_and_bounded() {
        let expect =
            Expectation { cas: &[], principal: None, now: Timestamp(0), source: None, revoked_serials: &[] };
        assert!(matches!(
            verify_openssh("ssh-ed25519-cert-v01@openssh.com AAAA", &expect),
            Err(Refusal::Malformed(_))
        ));
        assert!(matches!(verify_openssh(&"A".repeat(1 << 20), &expect), Err(Refusal::Malformed(_))));
    }
}
