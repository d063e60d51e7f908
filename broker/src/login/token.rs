//! Access tokens: JWTs signed with Ed25519 that live ten minutes (RFC 7519, RFC 8037, RFC 9068).
//!
//! A token says who, of which sign-in, and until when. What the person may do is not in it: teams are read
//! from the person's row at each request.

use daypass_protocol::ids::PersonId;
use daypass_protocol::time::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use ssh_key::private::Ed25519Keypair;
use std::fmt;
use std::time::Duration;

pub const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(10);
const AUDIENCE: &str = "daypass-api";
/// Longer than any that we make.
const MAX_TOKEN: usize = 4096;
/// RFC 9068 section 2.1: keeps other JWTs of ours from being taken for access tokens.
const TYPE: &str = "at+jwt";

const PKCS8_OF_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The key that signs access tokens.
pub struct TokenKey {
    sign: EncodingKey,
    verify: DecodingKey,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// Every field is required: a token that lacks one does not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AccessClaims {
    pub iss: String,
    pub aud: String,
    pub sub: PersonId,
    pub jti: String,
    /// The token family, by which it is revoked.
    pub family: String,
    /// Seconds since 1970, as in every JWT.
    pub iat: u64,
    pub exp: u64,
    pub auth_time: u64,
}

/// Why an access token opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenRefusal {
    #[error("it is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("{0}")]
    Jwt(#[from] jsonwebtoken::errors::Error),
    #[error("its type is not {TYPE}")]
    WrongType,
    #[error("it ended at {0}")]
    Expired(Timestamp),
    #[error("it was issued in the future, at {0}")]
    FromTheFuture(Timestamp),
}

/// What a token is made for.
#[derive(Debug)]
pub(super) struct Bearer<'a> {
    pub issuer: &'a str,
    pub person: &'a PersonId,
    pub family: &'a str,
    pub signed_in_at: Timestamp,
    pub jti: String,
}

impl TokenKey {
    /// From the 32 bytes of an Ed25519 private key (RFC 8032 section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        // RFC 8410 section 7: PKCS#8 of an Ed25519 key is this, and the 32 bytes.
        let mut der = zeroize::Zeroizing::new(PKCS8_OF_ED25519.to_vec());
        der.extend_from_slice(seed);
        let public = Ed25519Keypair::from_seed(seed).public;
        Self { sign: EncodingKey::from_ed_der(&der), verify: DecodingKey::from_ed_der(&public.0) }
    }

    pub(super) fn sign(
        &self,
        bearer: Bearer<'_>,
        now: Timestamp,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let claims = AccessClaims {
            iss: bearer.issuer.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: bearer.person.clone(),
            jti: bearer.jti,
            family: bearer.family.to_owned(),
            iat: now.as_secs(),
            exp: (now + ACCESS_TOKEN_LIFETIME).as_secs(),
            auth_time: bearer.signed_in_at.as_secs(),
        };
        self.sign_claims(&claims)
    }

    fn sign_claims(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYPE.to_owned());
        jsonwebtoken::encode(&header, claims, &self.sign)
    }

    /// Algorithm, signature, type, issuer, audience and time; that the family lives is the caller's to ask.
    pub(super) fn verify(
        &self,
        token: &str,
        issuer: &str,
        now: Timestamp,
    ) -> Result<AccessClaims, TokenRefusal> {
        if token.len() > MAX_TOKEN {
            return Err(TokenRefusal::TooLong);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[AUDIENCE]);
        // The library would ask the system's clock; ours is asked below.
        validation.validate_exp = false;
        let token = jsonwebtoken::decode::<AccessClaims>(token, &self.verify, &validation)?;
        if token.header.typ.as_deref() != Some(TYPE) {
            return Err(TokenRefusal::WrongType);
        }
        let claims = token.claims;
        if claims.exp <= now.as_secs() {
            return Err(TokenRefusal::Expired(Timestamp::from_secs(claims.exp)));
        }
        // We made it: a later time than ours means that our clock was set back.
        if claims.iat > now.as_secs() + 60 {
            return Err(TokenRefusal::FromTheFuture(Timestamp::from_secs(claims.iat)));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp(1_795_345_512_000);
    const ISSUER: &str = "https://daypass.example.com";

    fn good() -> Value {
        json!({
            "iss": ISSUER, "aud": "daypass-api", "sub": "P-7K2M9QXD", "jti": "j", "family": "f",
            "iat": NOW.as_secs(), "exp": NOW.as_secs() + 600, "auth_time": NOW.as_secs() - 60,
        })
    }

    fn verify(claims: &Value) -> Result<AccessClaims, TokenRefusal> {
        let key = TokenKey::from_seed(&[7; 32]);
        key.verify(&key.sign_claims(claims).unwrap(), ISSUER, NOW)
    }

    #[test]
    fn a_token_reads_back_until_it_ends() {
        let key = TokenKey::from_seed(&[7; 32]);
        let person = "P-7K2M9QXD".parse().unwrap();
        let bearer =
            Bearer { issuer: ISSUER, person: &person, family: "f", signed_in_at: NOW, jti: "j".to_owned() };
        let token = key.sign(bearer, NOW).unwrap();
        assert_eq!(key.verify(&token, ISSUER, NOW).unwrap().sub, person);
        let last = NOW + ACCESS_TOKEN_LIFETIME - Duration::from_secs(1);
        assert!(key.verify(&token, ISSUER, last).is_ok());
        assert!(matches!(
            key.verify(&token, ISSUER, NOW + ACCESS_TOKEN_LIFETIME),
            Err(TokenRefusal::Expired(_))
        ));
    }

    #[test]
    fn a_token_that_lacks_any_field_opens_nothing() {
        assert!(verify(&good()).is_ok());
        for field in ["iss", "aud", "sub", "jti", "family", "iat", "exp", "auth_time"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(field);
            assert!(verify(&claims).is_err(), "without {field}");
        }
    }

    #[test]
    fn a_token_for_another_audience_or_issuer_opens_nothing() {
        for (field, value) in [
            ("iss", json!("https://elsewhere.example.com")),
            ("iss", json!([ISSUER])),
            ("aud", json!("another-api")),
            ("aud", json!(["another-api", "daypass-api"])),
            ("sub", json!("ana@example.com")),
            ("exp", json!(NOW.as_secs())),
            ("exp", json!("never")),
            ("iat", json!(NOW.as_secs() + 3600)),
        ] {
            let mut claims = good();
            claims[field] = value.clone();
            assert!(verify(&claims).is_err(), "{field} = {value}");
        }
    }

    #[test]
    fn a_token_signed_by_another_key_or_by_none_opens_nothing() {
        let ours = TokenKey::from_seed(&[7; 32]);
        let foreign = TokenKey::from_seed(&[8; 32]).sign_claims(&good()).unwrap();
        assert!(ours.verify(&foreign, ISSUER, NOW).is_err());

        use base64::Engine as _;
        let b64 = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let unsigned =
            format!("{}.{}.", b64(json!({"alg": "none", "typ": TYPE}).to_string()), b64(good().to_string()));
        assert!(ours.verify(&unsigned, ISSUER, NOW).is_err());

        // CVE-2015-9235: the public key taken for the secret of an HMAC.
        let public = Ed25519Keypair::from_seed(&[7; 32]).public;
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(TYPE.to_owned());
        let confused = jsonwebtoken::encode(&header, &good(), &EncodingKey::from_secret(&public.0)).unwrap();
        assert!(ours.verify(&confused, ISSUER, NOW).is_err());
    }

    #[test]
    fn a_jwt_of_another_type_is_not_an_access_token() {
        let key = TokenKey::from_seed(&[7; 32]);
        let other = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &good(), &key.sign).unwrap();
        assert!(matches!(key.verify(&other, ISSUER, NOW), Err(TokenRefusal::WrongType)));
        assert!(matches!(key.verify(&"a".repeat(5000), ISSUER, NOW), Err(TokenRefusal::TooLong)));
    }
}
