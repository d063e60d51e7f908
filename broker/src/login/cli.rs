//! Signing in a command line: RFC 8628 against the broker, then access and refresh tokens.
//!
//! The CLI asks for a pair of codes, shows one, and polls with the other. A person who is signed in with
//! a browser types or follows the shown code, sees who asks, and confirms. The next poll gets the tokens,
//! once. From then on the CLI refreshes: each refresh token works once, and one that comes back a second
//! time is in two hands, so its whole family ends (RFC 9700 section 4.14.2).

use super::store::{self, CliSignIn};
use super::token::{ACCESS_TOKEN_LIFETIME, Bearer};
use super::{Error, Login, VerifiedPerson};
use crate::audit::{self, Event, Kind};
use crate::db;
use crate::random;
use daypass_protocol::api::{self, DeviceAuthorization, TokenAnswer, TokenError};
use daypass_protocol::text::{MAX_NAME, made_visible};
use daypass_protocol::time::Timestamp;
use std::time::Duration;

/// The one client there is (RFC 6749 section 2.2; public, so its name is no secret).
pub(super) const CLIENT_ID: &str = "daypass-cli";
const CODE_LIFETIME: Duration = Duration::from_mins(10);
/// Seconds between polls at first, and what `slow_down` adds (RFC 8628 section 3.5).
const INTERVAL: i64 = 5;
/// CLI sign-ins of one address that may wait at a time.
const MOST_WAITING: i64 = 50;
/// RFC 8628 section 6.1: no vowels, so that no words come out.
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const CODE_LETTERS: usize = 8;

/// What the token endpoint answers when it gives no tokens.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenRefused {
    #[error("authorization_pending")]
    Pending,
    #[error("slow_down")]
    SlowDown,
    #[error("expired_token")]
    Expired,
    #[error("access_denied")]
    Denied,
    #[error("invalid_grant")]
    InvalidGrant,
    #[error(transparent)]
    Broken(#[from] Error),
}

impl From<sqlx::Error> for TokenRefused {
    fn from(error: sqlx::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl TokenRefused {
    pub(super) fn answer(&self) -> TokenError {
        let description = match self {
            Self::Pending => "Nobody has confirmed the code yet.",
            Self::SlowDown => "Polls come too fast; wait five seconds longer between them.",
            Self::Expired => "Nobody confirmed the code in time; start again.",
            Self::Denied => "The sign-in was refused in the browser.",
            Self::InvalidGrant | Self::Broken(_) => {
                "The code or token is unknown, used or revoked; sign in again."
            }
        };
        TokenError { error: self.to_string(), error_description: Some(description.to_owned()) }
    }
}

/// `ABCD-EFGH`.
fn user_code() -> Result<String, random::NoRandomness> {
    let mut code = String::with_capacity(CODE_LETTERS + 1);
    while code.len() < CODE_LETTERS + 1 {
        for byte in random::bytes::<16>()? {
            // 240 is the largest multiple of 20 in a byte: what is above would favour some letters.
            if byte < 240 && code.len() < CODE_LETTERS + 1 {
                if code.len() == CODE_LETTERS / 2 {
                    code.push('-');
                }
                code.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    Ok(code)
}

/// A code as a person typed it, in the form it is stored; `None` when it cannot be one.
pub(super) fn typed_code(text: &str) -> Option<String> {
    if text.len() > 32 {
        return None;
    }
    let letters: Vec<u8> =
        text.bytes().filter(|b| *b != b'-' && *b != b' ').map(|b| b.to_ascii_uppercase()).collect();
    if letters.len() != CODE_LETTERS || !letters.iter().all(|b| ALPHABET.contains(b)) {
        return None;
    }
    let (first, second) = letters.split_at(CODE_LETTERS / 2);
    Some(format!("{}-{}", String::from_utf8_lossy(first), String::from_utf8_lossy(second)))
}

impl Login {
    /// RFC 8628 section 3.1. `None` when too many of this address wait already.
    pub(super) async fn authorize_cli(
        &self,
        client: &str,
        address: &str,
    ) -> Result<Option<DeviceAuthorization>, Error> {
        let now = self.now();
        // A code that is taken is drawn again; three in a row do not happen.
        for _ in 0..3 {
            let device_code = random::token()?;
            let ask = CliSignIn {
                user_code: user_code()?,
                client: made_visible(client, MAX_NAME),
                address: address.to_owned(),
                state: "waiting".to_owned(),
                asked_at: now,
                expires_at: now + CODE_LIFETIME,
                polled_at: Timestamp(0),
                interval_s: INTERVAL,
            };
            let mut tx = self.0.db.begin().await?;
            store::sweep(&mut tx, now).await?;
            if store::waiting_from(&mut tx, address, now).await? >= MOST_WAITING {
                return Ok(None);
            }
            match store::keep_cli_sign_in(&mut tx, &random::hash(&device_code), &ask).await {
                Ok(()) => tx.commit_housekeeping("nobody is signed in yet").await?,
                Err(error)
                    if db::violates(
                        &error,
                        &["cli_sign_in_user_code_is_unique", "cli_sign_in.user_code"],
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let mut page = self.0.public_url.clone();
            page.set_path("/device");
            let mut complete = page.clone();
            complete.query_pairs_mut().append_pair("code", &ask.user_code);
            return Ok(Some(DeviceAuthorization {
                device_code,
                user_code: ask.user_code,
                verification_uri: page.into(),
                verification_uri_complete: complete.into(),
                expires_in: CODE_LIFETIME.as_secs(),
                interval: INTERVAL.unsigned_abs(),
            }));
        }
        Err(Error::Database(sqlx::Error::Protocol("three user codes in a row were taken".to_owned())))
    }

    /// What a person is shown before they answer.
    pub(super) async fn waiting_cli(&self, user_code: &str) -> Result<Option<api::CliSignIn>, Error> {
        let found = store::waiting_cli_sign_in(self.0.db.pool(), user_code, self.now()).await?;
        Ok(found.map(|ask| api::CliSignIn {
            user_code: ask.user_code,
            client: ask.client,
            address: ask.address,
            asked_at: ask.asked_at,
            expires_at: ask.expires_at,
        }))
    }

    /// False when there is nothing (any more) to answer.
    pub(super) async fn answer_cli(
        &self,
        user_code: &str,
        by: &VerifiedPerson,
        confirm: bool,
    ) -> Result<bool, Error> {
        let now = self.now();
        let mut tx = self.0.db.begin().await?;
        let Some((client, address)) = store::answer_cli_sign_in(&mut tx, user_code, by, confirm, now).await?
        else {
            return Ok(false);
        };
        let kind = if confirm { Kind::CliSignInConfirmed } else { Kind::CliSignInRefused };
        let event = Event::new(kind, by.actor())
            .detail(serde_json::json!({ "user_code": user_code, "client": client, "address": address }));
        let recorded = audit::append(&mut tx, now, event).await?;
        tx.commit(recorded).await?;
        Ok(true)
    }

    /// One poll (RFC 8628 section 3.4).
    pub(super) async fn redeem_device_code(&self, device_code: &str) -> Result<TokenAnswer, TokenRefused> {
        let now = self.now();
        let hash = random::hash(device_code);
        let mut tx = self.0.db.begin().await?;
        let Some(ask) = store::polled_cli_sign_in(&mut tx, &hash).await? else {
            return Err(TokenRefused::InvalidGrant);
        };
        match ask.state.as_str() {
            "spent" => return Err(TokenRefused::InvalidGrant),
            _ if now >= ask.expires_at => return Err(TokenRefused::Expired),
            "refused" => return Err(TokenRefused::Denied),
            "waiting" => {
                let early = ask.polled_at.until(now) < Duration::from_secs(ask.interval_s.unsigned_abs());
                let interval = if early { ask.interval_s + INTERVAL } else { ask.interval_s };
                store::note_poll(&mut tx, &hash, now, interval).await?;
                tx.commit_housekeeping("when the CLI last asked").await?;
                return Err(if early { TokenRefused::SlowDown } else { TokenRefused::Pending });
            }
            _ => {}
        }
        let Some((person, client)) = store::spend_cli_sign_in(&mut tx, &hash).await? else {
            return Err(TokenRefused::InvalidGrant);
        };
        let family = random::token().map_err(Error::from)?;
        let refresh = random::token().map_err(Error::from)?;
        store::keep_family(&mut tx, &family, &person, &client, now + self.0.cli_lifetime).await?;
        store::keep_refresh_token(&mut tx, &random::hash(&refresh), &family, now).await?;
        let event = Event::new(Kind::SignInSucceeded, person.actor()).detail(serde_json::json!({
            "by": "cli", "from": ask.address, "client": client, "family": family, "mfa": person.mfa,
        }));
        let recorded = audit::append(&mut tx, now, event).await?;
        let answer = self.tokens(&person, &family, refresh, now)?;
        tx.commit(recorded).await?;
        Ok(answer)
    }

    /// Spends a refresh token for a new pair.
    pub(super) async fn refresh(&self, token: &str) -> Result<TokenAnswer, TokenRefused> {
        let now = self.now();
        let hash = random::hash(token);
        let mut tx = self.0.db.begin().await?;
        // First the update, which only one of two can win; then the look at whose it was.
        let fresh = store::spend_refresh_token(&mut tx, &hash).await?;
        let Some(family) = store::family_of_refresh_token(&mut tx, &hash, now).await? else {
            return Err(TokenRefused::InvalidGrant);
        };
        if !fresh {
            if store::revoke_family(&mut tx, &family.id, "a refresh token was used twice", now).await? {
                tracing::warn!(person = %family.person.id, client = family.client, "a refresh token was used twice");
                let event = Event::new(Kind::TokenReuse, family.person.actor())
                    .detail(serde_json::json!({ "family": family.id, "client": family.client }));
                let recorded = audit::append(&mut tx, now, event).await?;
                tx.commit(recorded).await?;
            }
            return Err(TokenRefused::InvalidGrant);
        }
        if !family.alive {
            return Err(TokenRefused::InvalidGrant);
        }
        let refresh = random::token().map_err(Error::from)?;
        store::keep_refresh_token(&mut tx, &random::hash(&refresh), &family.id, now).await?;
        let answer = self.tokens(&family.person, &family.id, refresh, now)?;
        tx.commit_housekeeping("the sign-in that this continues is in the log").await?;
        Ok(answer)
    }

    /// RFC 7009: ends the family of a refresh token. A token that is unknown is as good as revoked.
    pub(super) async fn revoke(&self, token: &str) -> Result<(), Error> {
        let now = self.now();
        let mut tx = self.0.db.begin().await?;
        let Some(family) = store::family_of_refresh_token(&mut tx, &random::hash(token), now).await? else {
            return Ok(());
        };
        if store::revoke_family(&mut tx, &family.id, "signed out", now).await? {
            let event = Event::new(Kind::SignedOut, family.person.actor()).detail(serde_json::json!({
                "by": "cli", "family": family.id, "client": family.client,
            }));
            let recorded = audit::append(&mut tx, now, event).await?;
            tx.commit(recorded).await?;
        }
        Ok(())
    }

    fn tokens(
        &self,
        person: &VerifiedPerson,
        family: &str,
        refresh_token: String,
        now: Timestamp,
    ) -> Result<TokenAnswer, Error> {
        let bearer = Bearer {
            issuer: &self.origin(),
            person: &person.id,
            family,
            signed_in_at: person.signed_in_at,
            jti: random::token()?,
        };
        Ok(TokenAnswer {
            access_token: self.0.key.sign(bearer, now)?,
            token_type: "Bearer".to_owned(),
            expires_in: ACCESS_TOKEN_LIFETIME.as_secs(),
            refresh_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_code_is_eight_unambiguous_letters_and_reads_back_as_people_type_it() {
        for _ in 0..200 {
            let code = user_code().unwrap();
            assert_eq!(code.len(), 9);
            assert_eq!(typed_code(&code), Some(code.clone()));
            assert_eq!(typed_code(&code.to_lowercase().replace('-', " ")), Some(code));
        }
    }

    #[test]
    fn what_cannot_be_a_user_code_is_not_looked_up() {
        for bad in ["", "BCDF", "BCDF-GHJA", "BCDF-GHJKL", "BCDF-GH%0", "%", &"B".repeat(1000)] {
            assert_eq!(typed_code(bad), None, "{bad:?}");
        }
    }
}
