//! Policy: who may do what, decided by Cedar.
//!
//! Deny is the default, forbid beats permit, and a policy that cannot be evaluated refuses instead of
//! being skipped. Nothing here sees a pool, a clock or a socket: `now` is passed in, and what people
//! wrote reaches Cedar as values, never as policy text.
//!
//! - [`evaluate`] decides a [`ConnectAsk`] with the approvals at hand: granted, waiting, or refused.
//! - [`holds`] asks the same, once, about a session that is to open or already runs.
//! - [`may`] decides every other [`Action`].
//! - [`PolicyStore`] holds the set in force; a new set that does not validate never replaces it.

mod action;
mod approvers;
pub mod cases;
pub mod commands;
mod decision;
mod error;
mod facts;
mod limits;
mod permission;
mod question;
pub mod separation;
mod set;
pub mod shipped;
mod store;
mod suggestion;
#[cfg(test)]
mod tests;

pub use action::{About, Action};
pub use decision::{ApprovalTerms, Decision, Refusal, Terms, evaluate, holds};
pub use error::{PolicyError, PolicyErrors};
pub use facts::{Approvals, ConnectAsk, DeviceFacts, RequestFacts, Resource, SessionFacts, Subject};
pub use limits::SessionLimits;
pub use permission::{Permission, may, may_at_all};
pub use set::Policies;
pub use store::{PolicyStore, Reloaded};
