//! The broker's keys, and the certificates it mints.
//!
//! Three SSH CAs (identity, user, host), the evidence key and the token key, each its own key
//! ([`keys`]). Only [`signer`] sees a private half. [`issue`] mints; a session certificate costs a
//! [`crate::session::Permit`].

pub mod issue;
pub mod keys;
pub mod signer;

pub use keys::{KeyPurpose, Keys};
pub use signer::Signer;
