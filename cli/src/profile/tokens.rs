//! The tokens of a profile.

use super::{Profile, file};
use crate::failure::Failure;
use daypass_protocol::api::TokenAnswer;
use daypass_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

const FILE: &str = "tokens.json";

/// An access token is renewed while it still has this long, so that it does not end on the way.
const MARGIN: Duration = Duration::from_secs(30);

/// `Debug` shows neither token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub access_token: String,
    pub refresh_token: String,
    /// By this machine's clock.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Tokens {
    pub fn from_answer(answer: TokenAnswer, now: Timestamp) -> Self {
        Self {
            access_token: answer.access_token,
            refresh_token: answer.refresh_token,
            expires_at: now + Duration::from_secs(answer.expires_in),
        }
    }

    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.expires_at > now + MARGIN
    }
}

impl Profile {
    pub fn tokens(&self) -> Result<Option<Tokens>, Failure> {
        let path = self.path(FILE);
        let Some(text) = file::read(&path)? else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(tokens) => Ok(Some(tokens)),
            // The cause would quote the file, and the file is a secret.
            Err(_) => Err(Failure::Corrupt { path, why: crate::ui::words::NOT_TOKENS.to_owned() }),
        }
    }

    pub fn write_tokens(&self, tokens: &Tokens) -> Result<(), Failure> {
        let text = serde_json::to_vec(tokens)
            .map_err(|e| Failure::Corrupt { path: self.path(FILE), why: e.to_string() })?;
        self.write(FILE, &text)
    }

    pub fn remove_tokens(&self) -> Result<(), Failure> {
        self.remove(FILE)
    }
}
