//! How the broker's certificate is trusted: the system's roots, one authority, or one certificate.

use crate::failure::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

/// SHA-256 of a certificate's DER. Written `SHA256:` and base64; read also as hexadecimal, with or
/// without colons, as other tools print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a fingerprint is written SHA256: and base64 or hexadecimal")]
pub struct NotAFingerprint;

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let text = text.trim();
        let digest = match text.split_at_checked(7) {
            Some((prefix, digest)) if prefix.eq_ignore_ascii_case("SHA256:") => digest,
            _ => text,
        };
        let hex: String = digest.chars().filter(|c| *c != ':').collect();
        let bytes = if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            (0..64).step_by(2).filter_map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
        } else {
            STANDARD_NO_PAD.decode(digest.trim_end_matches('=')).map_err(|_| NotAFingerprint)?
        };
        bytes.try_into().map(Self).map_err(|_| NotAFingerprint)
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;
    fn try_from(text: String) -> Result<Self, NotAFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD.encode(self.0).trim_end_matches('='))
    }
}

/// How far a broker's certificate is trusted.
#[derive(Clone, Debug)]
pub enum Trust {
    System,
    /// These PEM certificates, and no others.
    Authority(Vec<u8>),
    /// Exactly this certificate, whatever name or age it has.
    Certificate(Fingerprint),
}

/// Accepts one certificate. The pin replaces the chain, the name and the dates; it does not replace the
/// proof that the server holds the certificate's key, which is why the handshake's signature is checked
/// as ever: without that, anybody could replay a public certificate.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Fingerprint::of(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Adds the trust to a client that is being built.
pub fn trusting(builder: reqwest::ClientBuilder, trust: &Trust) -> Result<reqwest::ClientBuilder, Failure> {
    match trust {
        Trust::System => Ok(builder),
        Trust::Authority(pem) => {
            let bad = |why: String| Failure::BadAnswer { what: crate::ui::words::CA_FILE, why };
            let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| bad(e.to_string()))?;
            if roots.is_empty() {
                return Err(bad(crate::ui::words::NO_CERTIFICATE.to_owned()));
            }
            Ok(roots
                .into_iter()
                .fold(builder.tls_built_in_root_certs(false), reqwest::ClientBuilder::add_root_certificate))
        }
        Trust::Certificate(pin) => {
            let provider = CryptoProvider::get_default().cloned().ok_or(Failure::Random)?;
            let verifier = Pinned { pin: *pin, algorithms: provider.signature_verification_algorithms };
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| Failure::BadAnswer { what: "TLS", why: e.to_string() })?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(builder.use_preconfigured_tls(config))
        }
    }
}

/// The TLS error behind a failed request, if that is what failed it.
pub fn certificate_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return matches!(found, rustls::Error::InvalidCertificate(_)).then_some(found);
        }
        // An io::Error's source() skips the error that it wraps.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_in_the_forms_that_tools_print() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(b"x".as_slice()));
        let hex: Vec<String> = fingerprint.0.iter().map(|b| format!("{b:02X}")).collect();
        for text in [
            fingerprint.to_string(),
            format!("{fingerprint}="),
            hex.concat(),
            hex.join(":"),
            format!("sha256:{}", hex.concat().to_lowercase()),
        ] {
            assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint, "{text}");
        }
        for bad in ["", "SHA256:", "SHA256:abcd", "MD5:00", "é".repeat(40).as_str()] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
