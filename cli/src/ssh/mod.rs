//! What the system's `ssh` needs: a key, an identity certificate, and a configuration.

pub mod config;
pub mod forward;
pub mod identity;
