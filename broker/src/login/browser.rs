//! Signing in with a browser: there to the identity provider, back with a code, then a cookie.

use super::oidc::IdentityError;
use super::store::{self, Attempt, BrowserSession};
use super::{Error, Login, VerifiedPerson};
use crate::audit::{self, Event, Kind};
use crate::random;
use daypass_protocol::ids::PersonId;
use daypass_protocol::text::{MAX_NAME, made_visible};
use serde::Deserialize;
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use url::Url;

/// How long a person may take at the identity provider.
pub(super) const ATTEMPT_LIFETIME: Duration = Duration::from_mins(10);
const MAX_NEXT: usize = 2000;

/// What the identity provider sends the browser back with (RFC 6749 section 4.1.2, RFC 9207).
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbackQuery {
    pub code: Option<String>,
    pub state: Option<String>,
    pub error: Option<String>,
    pub error_description: Option<String>,
    pub iss: Option<String>,
}

/// A browser is on its way.
#[derive(Debug)]
pub(super) struct Started {
    pub to: Url,
    /// Value of the cookie that the callback must bring.
    pub browser: String,
}

/// A browser is signed in. The tokens are shown to it once.
#[derive(Debug)]
pub(super) struct SignedIn {
    pub session: String,
    pub csrf: String,
    pub next_path: String,
}

/// Why a callback signed nobody in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the callback has no state")]
    NoState,
    #[error("the callback has neither a code nor an error")]
    NoCode,
    #[error("the state is unknown: used before, expired, or never ours")]
    UnknownState,
    #[error("the callback came from another browser than the one that started")]
    AnotherBrowser,
    #[error("the sign-in took too long")]
    TooLate,
    #[error("the answer is from issuer {0:?}")]
    AnotherIssuer(String),
    #[error("the provider said {0}")]
    ProviderSaid(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Broken(#[from] Error),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl Refused {
    fn cause(&self) -> &'static str {
        match self {
            Self::NoState | Self::UnknownState => "state",
            Self::NoCode => "code",
            Self::AnotherBrowser => "browser",
            Self::TooLate => "too_late",
            Self::AnotherIssuer(_) => "issuer",
            Self::ProviderSaid(_) => "provider_said",
            Self::Identity(error) => error.cause(),
            Self::Broken(_) => "broker",
        }
    }
}

/// A path on this broker: what may stand in `next`. Anything that a browser could read as another host
/// (`//evil`, `/\evil`, a tab in between) is not one.
pub(super) fn is_local_path(next: &str) -> bool {
    next.len() <= MAX_NEXT
        && next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
}

impl Login {
    /// Makes an attempt and the URL to send the browser to. `browser` is the cookie of an attempt in
    /// another tab, which stays good.
    pub(super) async fn start(&self, next_path: &str, browser: Option<String>) -> Result<Started, Refused> {
        let authorization = self.0.oidc.authorization().await.map_err(IdentityError::Provider)?;
        let browser = match browser.filter(|token| token.len() == 43) {
            Some(token) => token,
            None => random::token().map_err(Error::from)?,
        };
        let now = self.now();
        let attempt = Attempt {
            nonce: authorization.nonce,
            pkce_verifier: authorization.pkce_verifier,
            browser_hash: random::hash(&browser),
            next_path: next_path.to_owned(),
            expires_at: now + ATTEMPT_LIFETIME,
        };
        let mut tx = self.0.db.begin().await?;
        store::sweep(&mut tx, now).await?;
        store::keep_attempt(&mut tx, &random::hash(&authorization.state), &attempt).await?;
        tx.commit_housekeeping("nobody is signed in yet").await?;
        Ok(Started { to: authorization.url, browser })
    }

    /// Takes the attempt out, exchanges the code, and signs the browser in; or says why not, also in the
    /// audit log.
    pub(super) async fn finish(
        &self,
        query: CallbackQuery,
        browser: Option<&str>,
        old_session: Option<&str>,
        from: &str,
    ) -> Result<SignedIn, Refused> {
        let outcome = self.try_finish(query, browser, old_session, from).await;
        if let Err(refused) = &outcome {
            self.refused(from, refused.cause(), &refused.to_string()).await?;
        }
        outcome
    }

    async fn try_finish(
        &self,
        query: CallbackQuery,
        browser: Option<&str>,
        old_session: Option<&str>,
        from: &str,
    ) -> Result<SignedIn, Refused> {
        let state = query.state.ok_or(Refused::NoState)?;
        let mut tx = self.0.db.begin().await?;
        let attempt = store::take_attempt(&mut tx, &random::hash(&state)).await?;
        tx.commit_housekeeping("a state works once, whatever comes of it").await?;
        let attempt = attempt.ok_or(Refused::UnknownState)?;
        // Without this, somebody could be signed in as their attacker by following a link (RFC 9700
        // section 4.7).
        let same_browser = browser.is_some_and(|token| {
            random::hash(token).as_bytes().ct_eq(attempt.browser_hash.as_bytes()).into()
        });
        if !same_browser {
            return Err(Refused::AnotherBrowser);
        }
        let now = self.now();
        if now >= attempt.expires_at {
            return Err(Refused::TooLate);
        }
        // RFC 9207: an answer of another provider is not taken for this one's.
        if let Some(issuer) = query.iss.filter(|issuer| issuer != self.0.oidc.issuer()) {
            return Err(Refused::AnotherIssuer(made_visible(&issuer, MAX_NAME)));
        }
        if let Some(error) = query.error {
            let said = query.error_description.map_or(error.clone(), |text| format!("{error}: {text}"));
            return Err(Refused::ProviderSaid(made_visible(&said, 500)));
        }
        let code = query.code.ok_or(Refused::NoCode)?;
        let identity = self.0.oidc.identity(code, attempt.pkce_verifier, attempt.nonce, now).await?;

        let session = random::token().map_err(Error::from)?;
        let csrf = random::token().map_err(Error::from)?;
        let fresh = PersonId::from_random(random::bytes().map_err(Error::from)?);
        let mut tx = self.0.db.begin().await?;
        let id = store::upsert_person(&mut tx, &identity, &fresh, now).await?;
        if let Some(old) = old_session {
            store::end_browser_session(&mut tx, &random::hash(old)).await?;
        }
        let row = BrowserSession {
            token_hash: &random::hash(&session),
            csrf_hash: &random::hash(&csrf),
            person: &id,
            signed_in_at: identity.signed_in_at,
            mfa: identity.mfa,
            created_at: now,
            expires_at: now + self.0.browser_lifetime,
        };
        store::keep_browser_session(&mut tx, &row).await?;
        let actor = audit::Actor::Person { id, email: identity.email };
        let event = Event::new(Kind::SignInSucceeded, actor).detail(serde_json::json!({
            "by": "browser", "from": from, "issuer": identity.issuer, "subject": identity.subject,
            "teams": identity.teams, "mfa": identity.mfa,
        }));
        let recorded = audit::append(&mut tx, now, event).await?;
        tx.commit(recorded).await?;
        Ok(SignedIn { session, csrf, next_path: attempt.next_path })
    }

    /// The person of a browser session, by the value of its cookie.
    pub async fn from_browser_session(&self, token: &str) -> Result<VerifiedPerson, Error> {
        Ok(self.browser_session(token).await?.0)
    }

    /// Also the hash of the session's CSRF token.
    pub(super) async fn browser_session(&self, token: &str) -> Result<(VerifiedPerson, String), Error> {
        store::browser_session(self.0.db.pool(), &random::hash(token), self.now())
            .await?
            .ok_or_else(|| Error::NotSignedIn("the browser session is unknown or over".to_owned()))
    }

    pub(super) async fn end_browser_session(
        &self,
        person: &VerifiedPerson,
        token: &str,
    ) -> Result<(), Error> {
        let mut tx = self.0.db.begin().await?;
        store::end_browser_session(&mut tx, &random::hash(token)).await?;
        let event =
            Event::new(Kind::SignedOut, person.actor()).detail(serde_json::json!({ "by": "browser" }));
        let recorded = audit::append(&mut tx, self.now(), event).await?;
        tx.commit(recorded).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_local_path;

    #[test]
    fn next_is_a_path_of_this_broker_and_nothing_else() {
        for good in ["/", "/requests/R-7K2M9QXD", "/device?code=ABCD-EFGH", "/a?b=//c"] {
            assert!(is_local_path(good), "{good}");
        }
        for bad in [
            "",
            "requests",
            "//evil.example.com",
            "/\\evil.example.com",
            "\\\\evil",
            "/\t/evil",
            "/\n",
            "/a b",
            "https://evil.example.com",
            "javascript:alert(1)",
            "/ä",
            &format!("/{}", "a".repeat(2000)),
        ] {
            assert!(!is_local_path(bad), "{bad:?}");
        }
    }
}
