//! Signing in. What comes out is a [`VerifiedPerson`], which nothing outside this module can make.
//!
//! Four ways lead to one: an ID token of the identity provider (`oidc`, through `browser`), the cookie of
//! a browser session (`browser`), an access token of the command line (`cli`, `token`), and an identity
//! certificate at the SSH gateway ([`from_identity_certificate`]). [`Caller`] takes the first that a
//! request carries.

mod browser;
mod caller;
mod cli;
mod config;
mod fetch;
#[allow(unused_qualifications, reason = "what utoipa writes for query parameters")]
pub mod http;
pub(crate) mod limit;
mod oidc;
mod person;
mod store;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod token;

pub use caller::{BrowserCaller, Caller, ClientAddress, LastingCaller, TokenCaller};
pub use config::{CLIENT_SECRET_VARIABLE, ConfigFault, LoginConfig, LoginSettings, Secret};
pub use fetch::FetchError;
pub use person::VerifiedPerson;
pub use token::{ACCESS_TOKEN_LIFETIME, TokenKey};

use crate::audit::{self, Actor, Event, Kind};
use crate::clock::Clock;
use crate::db::Db;
use crate::http::Problem;
use crate::random::NoRandomness;
use daypass_protocol::certificate::{Principal, Verified};
use daypass_protocol::time::Timestamp;
use limit::Limit;
use oidc::Oidc;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The proof is missing, wrong, too old or revoked. The words are for the log.
    #[error("not signed in: {0}")]
    NotSignedIn(String),
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("an access token cannot be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotSignedIn(why) => {
                tracing::debug!(why, "a caller is not signed in");
                Self::unauthenticated("You are not signed in, or no longer.")
            }
            Error::Database(error) => Self::from(error),
            other => Self::unavailable("signing in failed", &other),
        }
    }
}

/// Everything that signing in needs; clones share it.
#[derive(Clone, Debug)]
pub struct Login(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    db: Db,
    clock: Clock,
    oidc: Oidc,
    key: TokenKey,
    /// As people and programs reach the broker, and the issuer of access tokens.
    public_url: Url,
    browser_lifetime: Duration,
    cli_lifetime: Duration,
    starts: Limit,
    callbacks: Limit,
    cli_asks: Limit,
    codes_by_person: Limit,
    codes_by_network: Limit,
}

impl Login {
    /// `public_url` is the broker's own, `https://daypass.example.com`; the identity provider must know
    /// `<public_url>/login/callback`. The provider is not asked anything yet.
    pub fn new(
        db: Db,
        clock: Clock,
        settings: LoginSettings,
        public_url: Url,
        key: TokenKey,
    ) -> Result<Self, FetchError> {
        let mut callback = public_url.clone();
        callback.set_path("/login/callback");
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Ok(Self(Arc::new(Parts {
            db,
            clock,
            browser_lifetime: settings.browser_lifetime,
            cli_lifetime: settings.cli_lifetime,
            oidc: Oidc::new(settings, &callback)?,
            key,
            public_url,
            // Generous for an office behind one address; each also bounds what a stranger can make the
            // store and the audit log grow.
            starts: Limit::new(120, minutes(1)),
            callbacks: Limit::new(120, minutes(1)),
            cli_asks: Limit::new(60, minutes(1)),
            // 20^8 codes, of which a handful are valid at a time.
            codes_by_person: Limit::new(20, minutes(10)),
            codes_by_network: Limit::new(100, minutes(10)),
        })))
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// `https://host:port`, as browsers write it in `Origin`.
    fn origin(&self) -> String {
        self.0.public_url.origin().ascii_serialization()
    }

    /// The person of an access token: its signature and claims, its family in the store, and the person's
    /// teams as they are now.
    pub async fn from_access_token(&self, token: &str) -> Result<VerifiedPerson, Error> {
        let now = self.now();
        let claims = self
            .0
            .key
            .verify(token, &self.origin(), now)
            .map_err(|error| Error::NotSignedIn(format!("the access token is refused: {error}")))?;
        let family = store::family_by_id(self.0.db.pool(), &claims.family, now).await?;
        match family {
            Some(family) if family.alive && family.person.id == claims.sub => {
                let signed_in_at = Timestamp::from_secs(claims.auth_time);
                Ok(VerifiedPerson { signed_in_at, ..family.person })
            }
            _ => Err(Error::NotSignedIn("the access token's sign-in was ended".to_owned())),
        }
    }

    /// Writes down that somebody was not signed in, with the cause for whoever asks why.
    async fn refused(&self, from: &str, cause: &str, why: &str) -> Result<(), sqlx::Error> {
        tracing::warn!(from, cause, why, "a sign-in was refused");
        let why = daypass_protocol::text::made_visible(why, 1000);
        let event = Event::new(Kind::SignInRefused, Actor::Stranger(from.to_owned()))
            .detail(serde_json::json!({ "cause": cause, "why": why }));
        let mut tx = self.0.db.begin().await?;
        let recorded = audit::append(&mut tx, self.now(), event).await?;
        tx.commit(recorded).await
    }
}

/// The person that an identity certificate names, if this broker issued it and neither the certificate
/// nor the sign-in it came from was revoked.
pub async fn from_identity_certificate(
    db: &Db,
    certificate: &Verified,
    now: Timestamp,
) -> Result<VerifiedPerson, Error> {
    let refused = |why: String| Err(Error::NotSignedIn(why));
    let Principal::Person(id) = certificate.principal() else {
        return refused(format!("the certificate is for {}, not for a person", certificate.principal()));
    };
    if now >= certificate.valid_before() {
        return refused(format!("the certificate ended at {}", certificate.valid_before()));
    }
    let Ok(serial) = i64::try_from(certificate.serial()) else {
        return refused(format!("serial {} is none of ours", certificate.serial()));
    };
    match store::person_of_certificate(db.pool(), id, serial).await? {
        Some(person) => Ok(person),
        None => refused(format!("identity certificate {serial} of {id} is unknown or revoked")),
    }
}
