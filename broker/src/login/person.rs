//! A person who proved who they are.

use crate::audit::Actor;
use daypass_protocol::ids::PersonId;
use daypass_protocol::time::Timestamp;

/// Somebody whose proof was checked: an ID token, an access token, a browser session or an identity
/// certificate. Only `login` makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPerson {
    pub(super) id: PersonId,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) teams: Vec<String>,
    pub(super) mfa: bool,
    pub(super) signed_in_at: Timestamp,
    pub(super) family: Option<String>,
}

impl VerifiedPerson {
    pub fn id(&self) -> &PersonId {
        &self.id
    }
    /// A label for people; never a key.
    pub fn email(&self) -> &str {
        &self.email
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn teams(&self) -> &[String] {
        &self.teams
    }
    /// Whether the identity provider says that more than one factor was used.
    pub fn mfa(&self) -> bool {
        self.mfa
    }
    pub fn signed_in_at(&self) -> Timestamp {
        self.signed_in_at
    }

    /// The CLI sign-in (`token_family.id`) this proof came from; write it into the row of an identity
    /// certificate, so that signing out ends the certificate too. `None` for a browser.
    pub fn family(&self) -> Option<&str> {
        self.family.as_deref()
    }

    pub fn actor(&self) -> Actor {
        Actor::Person { id: self.id.clone(), email: self.email.clone() }
    }
}
