//! People for tests of other modules.

use super::VerifiedPerson;
use super::oidc::Identity;
use super::store;
use crate::db::Db;
use daypass_protocol::ids::PersonId;
use daypass_protocol::time::Timestamp;

/// Somebody who signed in at `now`, as if through the identity provider; their row is in the store.
pub async fn person(db: &Db, email: &str, teams: &[&str], now: Timestamp) -> VerifiedPerson {
    let identity = Identity {
        issuer: "https://idp.test".to_owned(),
        subject: email.to_owned(),
        email: email.to_owned(),
        name: email.split('@').next().unwrap_or_default().to_owned(),
        teams: teams.iter().map(|team| (*team).to_owned()).collect(),
        mfa: false,
        signed_in_at: now,
    };
    let fresh = PersonId::from_random(crate::random::bytes().unwrap());
    let mut tx = db.begin().await.unwrap();
    let id = store::upsert_person(&mut tx, &identity, &fresh, now).await.unwrap();
    tx.commit_housekeeping("a test's person").await.unwrap();
    VerifiedPerson {
        id,
        email: identity.email,
        name: identity.name,
        teams: identity.teams,
        mfa: false,
        signed_in_at: now,
        family: None,
    }
}
