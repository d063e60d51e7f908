//! The relying party of OpenID Connect Core 1.0: authorization code with PKCE.
//!
//! [`Oidc::authorization`] makes the URL that a browser is sent to; [`Oidc::identity`] exchanges the code
//! that comes back and runs every check of section 3.1.3.7 on the ID token. The provider is found by
//! discovery when it is first needed, so that the broker starts while the provider is down.

use super::config::LoginSettings;
use super::fetch::{Fetch, FetchError};
use crate::random;
use daypass_protocol::text::{MAX_NAME, made_visible};
use daypass_protocol::time::Timestamp;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreClientAuthMethod, CoreErrorResponseType, CoreGenderClaim,
    CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse,
    CoreTokenType,
};
use openidconnect::{
    AuthType, AuthenticationFlow, AuthorizationCode, ClaimsVerificationError, Client, ClientId, ClientSecret,
    CsrfToken, DiscoveryError, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet,
    IdTokenClaims, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError,
    StandardErrorResponse, StandardTokenResponse, TokenResponse as _,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Mutex;
use url::Url;

/// Signatures that are believed: asymmetric ones. Never `none`, and never an HMAC: its key would be the
/// client secret, or worse, the text of a public key.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// How far the provider's clock may be from ours.
const SKEW: Duration = Duration::from_secs(30);
/// An ID token fetched with a fresh code was made just now.
const OLDEST_ID_TOKEN: Duration = Duration::from_mins(10);
/// After this the provider is discovered again: its keys and endpoints may have changed.
const METADATA_LIFETIME: Duration = Duration::from_hours(1);
/// At most this often after a failure, and for a key that is not known.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// More teams than this are no list of teams.
const MAX_TEAMS: usize = 500;

/// All claims besides those that OpenID Connect names: the groups are among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct OtherClaims {
    #[serde(flatten)]
    claims: Map<String, Value>,
}
impl openidconnect::AdditionalClaims for OtherClaims {}

type TokenFields = IdTokenFields<
    OtherClaims,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type TokenAnswer = StandardTokenResponse<TokenFields, CoreTokenType>;
type RelyingParty = Client<
    OtherClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    TokenAnswer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;
type Claims = IdTokenClaims<OtherClaims, CoreGenderClaim>;

/// The provider cannot be asked now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("the identity provider {issuer} cannot be discovered: {cause}")]
    Discovery { issuer: String, cause: String },
    #[error(transparent)]
    NoRandomness(#[from] Arc<random::NoRandomness>),
}

/// Why an answer of the provider signed nobody in. The words are for the log.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("the code could not be exchanged: {0}")]
    Exchange(String),
    #[error("the provider's answer does not read: {0}")]
    Unreadable(String),
    #[error("the provider's answer has no ID token")]
    NoIdToken,
    #[error("the ID token is refused: {0}")]
    IdToken(ClaimsVerificationError),
    #[error("the ID token was made for {0:?} to use")]
    AuthorizedParty(String),
    #[error("the ID token was issued at {issued}, and it is {now}")]
    IssuedAt { issued: Timestamp, now: Timestamp },
    #[error("the person signed in to the provider too long ago, or it does not say when")]
    AuthTime,
    #[error("the user information is refused: {0}")]
    UserInfo(String),
}

impl IdentityError {
    /// One word for the audit log.
    pub fn cause(&self) -> &'static str {
        use ClaimsVerificationError as Refused;
        match self {
            Self::Provider(_) => "provider",
            Self::Exchange(_) => "exchange",
            Self::Unreadable(_) => "unreadable",
            Self::NoIdToken => "no_id_token",
            Self::AuthorizedParty(_) => "authorized_party",
            Self::IssuedAt { .. } => "issued_at",
            Self::AuthTime => "auth_time",
            Self::UserInfo(_) => "user_info",
            Self::IdToken(Refused::InvalidIssuer(_)) => "issuer",
            Self::IdToken(Refused::InvalidAudience(_)) => "audience",
            Self::IdToken(Refused::Expired(_)) => "expired",
            Self::IdToken(Refused::InvalidNonce(_)) => "nonce",
            Self::IdToken(Refused::SignatureVerification(
                SignatureVerificationError::DisallowedAlg(_)
                | SignatureVerificationError::NoSignature
                | SignatureVerificationError::UnsupportedAlg(_),
            )) => "algorithm",
            Self::IdToken(Refused::SignatureVerification(_)) => "signature",
            Self::IdToken(_) => "id_token",
        }
    }
}

/// What a browser is sent to the provider with, and what must be remembered until it comes back.
#[derive(Debug)]
pub struct Authorization {
    pub url: Url,
    pub state: String,
    pub nonce: String,
    pub pkce_verifier: String,
}

/// Whom the provider vouches for. Every check has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) teams: Vec<String>,
    pub(super) mfa: bool,
    pub(super) signed_in_at: Timestamp,
}

#[derive(Debug)]
pub struct Oidc {
    settings: LoginSettings,
    redirect: RedirectUrl,
    fetch: Fetch,
    found: Mutex<Option<Found>>,
}

#[derive(Clone, Debug)]
struct Found {
    at: Instant,
    outcome: Result<Arc<Provider>, ProviderError>,
}

#[derive(Debug)]
struct Provider {
    client: RelyingParty,
    user_info: Option<Url>,
}

impl Oidc {
    pub fn new(settings: LoginSettings, redirect: &Url) -> Result<Self, FetchError> {
        let fetch = Fetch::new(&settings)?;
        Ok(Self {
            settings,
            redirect: RedirectUrl::from_url(redirect.clone()),
            fetch,
            found: Mutex::default(),
        })
    }

    pub fn issuer(&self) -> &str {
        &self.settings.issuer_text
    }

    /// Where to send a browser that wants to sign in.
    pub async fn authorization(&self) -> Result<Authorization, ProviderError> {
        let provider = self.provider(METADATA_LIFETIME).await?;
        let token = || random::token().map_err(Arc::new);
        let (state, nonce, pkce_verifier) = (token()?, token()?, token()?);
        let (asked_state, asked_nonce) = (CsrfToken::new(state.clone()), Nonce::new(nonce.clone()));
        let challenge =
            PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(pkce_verifier.clone()));
        let mut request = provider
            .client
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                move || asked_state,
                move || asked_nonce,
            )
            .add_scopes(self.settings.scopes.iter().filter(|s| *s != "openid").cloned().map(Scope::new))
            .set_pkce_challenge(challenge);
        if let Some(max_age) = self.settings.max_age {
            request = request.set_max_age(max_age);
        }
        let (url, ..) = request.url();
        Ok(Authorization { url, state, nonce, pkce_verifier })
    }

    /// Exchanges a code and verifies what it gives.
    pub async fn identity(
        &self,
        code: String,
        pkce_verifier: String,
        nonce: String,
        now: Timestamp,
    ) -> Result<Identity, IdentityError> {
        let provider = self.provider(METADATA_LIFETIME).await?;
        let answer = provider
            .client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|error| IdentityError::Exchange(error.to_string()))?
            .set_pkce_verifier(PkceCodeVerifier::new(pkce_verifier))
            .request_async(&self.fetch)
            .await
            .map_err(|error| match error {
                RequestTokenError::ServerResponse(said) => IdentityError::Exchange(said.to_string()),
                RequestTokenError::Request(error) => IdentityError::Exchange(error.to_string()),
                RequestTokenError::Parse(error, _) => IdentityError::Unreadable(error.to_string()),
                RequestTokenError::Other(error) => IdentityError::Unreadable(error),
            })?;
        let nonce = Nonce::new(nonce);
        let claims = match self.verified(&provider, &answer, &nonce, now) {
            // The provider may have a new key since we asked.
            Err(IdentityError::IdToken(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey,
            ))) => {
                let provider = self.provider(RETRY_AFTER).await?;
                self.verified(&provider, &answer, &nonce, now)?
            }
            verified => verified?,
        };
        self.described(&provider, &answer, claims, now).await
    }

    /// Every check of OpenID Connect Core 1.0 section 3.1.3.7; a claim that is missing fails it.
    fn verified<'a>(
        &self,
        provider: &Provider,
        answer: &'a TokenAnswer,
        nonce: &Nonce,
        now: Timestamp,
    ) -> Result<&'a Claims, IdentityError> {
        let id_token = answer.id_token().ok_or(IdentityError::NoIdToken)?;
        // Steps 2, 3, 6, 7, 9 and 11: issuer, audience (ours and no other), signature, algorithm,
        // expiry, nonce.
        let clock = moment(now - SKEW);
        let verifier = provider
            .client
            .id_token_verifier()
            .set_allowed_algs(ALGORITHMS)
            .set_time_fn(move || clock.into());
        let claims = id_token.claims(&verifier, nonce).map_err(IdentityError::IdToken)?;
        // Step 5.
        if let Some(party) = claims.authorized_party()
            && party.as_str() != self.settings.client_id
        {
            return Err(IdentityError::AuthorizedParty(made_visible(party, MAX_NAME)));
        }
        // Step 10.
        let issued = Timestamp(claims.issue_time().timestamp_millis());
        if issued > now + SKEW || issued + OLDEST_ID_TOKEN < now {
            return Err(IdentityError::IssuedAt { issued, now });
        }
        // Step 13.
        if let Some(max_age) = self.settings.max_age {
            let signed_in = claims.auth_time().map(|at| Timestamp(at.timestamp_millis()));
            if signed_in.is_none_or(|at| at + max_age + SKEW < now) {
                return Err(IdentityError::AuthTime);
            }
        }
        Ok(claims)
    }

    /// Turns verified claims into an identity; asks for the user information where the ID token has no
    /// e-mail address or teams in it, as many providers keep those there.
    async fn described(
        &self,
        provider: &Provider,
        answer: &TokenAnswer,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Identity, IdentityError> {
        let subject = claims.subject().as_str().to_owned();
        let mut email = claims.email().map(|email| email.as_str().to_owned());
        let mut name = claims.name().and_then(|name| name.get(None)).map(|name| name.as_str().to_owned());
        let mut teams = teams(&claims.additional_claims().claims, &self.settings.groups_claim);
        if let Some(url) = provider.user_info.as_ref().filter(|_| email.is_none() || teams.is_none()) {
            let more = self.user_info(url, answer.access_token().secret(), &subject).await?;
            let text = |key: &str| more.get(key).and_then(Value::as_str).map(str::to_owned);
            email = email.or_else(|| text("email"));
            name = name.or_else(|| text("name"));
            teams = teams.or_else(|| self::teams(&more, &self.settings.groups_claim));
        }
        let values = claims.auth_method_refs().into_iter().flatten().map(|amr| amr.as_str());
        let mfa = values
            .chain(claims.auth_context_ref().map(|acr| acr.as_str()))
            .any(|value| self.settings.mfa_values.iter().any(|mfa| mfa == value));
        // An address without white space can stand in a certificate's key id.
        let email = made_visible(&email.unwrap_or_else(|| subject.clone()), MAX_NAME)
            .replace(char::is_whitespace, "_");
        let name = name.map_or_else(|| email.clone(), |name| made_visible(&name, MAX_NAME));
        let signed_in_at = claims.auth_time().map_or(now, |at| Timestamp(at.timestamp_millis()).min(now));
        Ok(Identity {
            issuer: self.settings.issuer_text.clone(),
            subject,
            email,
            name,
            teams: teams.unwrap_or_default(),
            mfa,
            signed_in_at,
        })
    }

    /// OpenID Connect Core 1.0 section 5.3: the subject must be the ID token's, or the answer may be
    /// somebody else's.
    async fn user_info(
        &self,
        url: &Url,
        access_token: &str,
        subject: &str,
    ) -> Result<Map<String, Value>, IdentityError> {
        let refused = |why: String| IdentityError::UserInfo(why);
        let request = openidconnect::http::Request::get(url.as_str())
            .header("authorization", format!("Bearer {access_token}"))
            .header("accept", "application/json")
            .body(Vec::new())
            .map_err(|error| refused(error.to_string()))?;
        let answer = self.fetch.send(request).await.map_err(|error| refused(error.to_string()))?;
        if !answer.status().is_success() {
            return Err(refused(format!("{url} answered {}", answer.status())));
        }
        let claims: Map<String, Value> =
            serde_json::from_slice(answer.body()).map_err(|error| refused(error.to_string()))?;
        if claims.get("sub").and_then(Value::as_str) != Some(subject) {
            return Err(refused("it is about another subject".to_owned()));
        }
        Ok(claims)
    }

    /// The provider, discovered at most `age` ago. One caller discovers, the others wait for it; a
    /// failure is told to everybody for a moment, so that they do not queue up behind a dead provider.
    async fn provider(&self, age: Duration) -> Result<Arc<Provider>, ProviderError> {
        let mut found = self.found.lock().await;
        if let Some(known) = found.as_ref() {
            let good_for = if known.outcome.is_ok() { age } else { RETRY_AFTER };
            if known.at.elapsed() < good_for {
                return known.outcome.clone();
            }
        }
        let outcome = self.discover().await.map(Arc::new);
        // A provider that cannot be reached now keeps the keys it had; they are tried again soon.
        if let (Err(error), Some(Found { outcome: Ok(provider), at })) = (&outcome, found.as_mut()) {
            tracing::warn!(%error, "going on with what the identity provider said before");
            *at = Instant::now();
            return Ok(provider.clone());
        }
        *found = Some(Found { at: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    async fn discover(&self) -> Result<Provider, ProviderError> {
        let failed =
            |cause: String| ProviderError::Discovery { issuer: self.settings.issuer_text.clone(), cause };
        let issuer =
            IssuerUrl::new(self.settings.issuer_text.clone()).map_err(|error| failed(error.to_string()))?;
        let metadata =
            CoreProviderMetadata::discover_async(issuer, &self.fetch).await.map_err(|error| match error {
                DiscoveryError::Request(cause) => failed(cause.to_string()),
                DiscoveryError::Response(_, _, cause) => failed(cause),
                other => failed(other.to_string()),
            })?;
        // RFC 6749 section 2.3.1 prefers Basic; some providers take the secret in the body only.
        let auth_type = match metadata.token_endpoint_auth_methods_supported() {
            Some(methods)
                if !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                    && methods.contains(&CoreClientAuthMethod::ClientSecretPost) =>
            {
                AuthType::RequestBody
            }
            _ => AuthType::BasicAuth,
        };
        let user_info = metadata.userinfo_endpoint().map(|endpoint| endpoint.url().clone());
        let secret = self.settings.client_secret.as_ref().map(|s| ClientSecret::new(s.reveal().to_owned()));
        let client = RelyingParty::from_provider_metadata(
            metadata,
            ClientId::new(self.settings.client_id.clone()),
            secret,
        )
        .set_auth_type(auth_type)
        .set_redirect_uri(self.redirect.clone());
        Ok(Provider { client, user_info })
    }
}

/// The teams at `path`: the claim of that very name, or the one reached by its dots. A text alone is a
/// list of one. `None` when there is no such claim.
fn teams(claims: &Map<String, Value>, path: &str) -> Option<Vec<String>> {
    let value = claims.get(path).or_else(|| {
        let mut steps = path.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    })?;
    let list = match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    // A name that had to be changed to be shown could be mistaken for another team's: it is left out.
    let mut teams: Vec<String> = list
        .into_iter()
        .filter(|team| !team.is_empty() && made_visible(team, MAX_NAME) == *team)
        .take(MAX_TEAMS)
        .map(str::to_owned)
        .collect();
    teams.sort();
    teams.dedup();
    Some(teams)
}

/// chrono, which the verifier counts in, takes the system's kind of time.
fn moment(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(0))
}
