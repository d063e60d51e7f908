//! The Daypass broker: signs people in, decides by policy, mints session certificates, records sessions
//! and keeps the evidence.
//!
//! `ARCHITECTURE.md` follows one request through the modules, in order.
#![forbid(unsafe_code)]

pub mod approval;
pub mod audit;
pub mod broker;
pub mod certificate;
pub mod clock;
pub mod config;
pub mod db;
pub mod demo;
pub mod device;
pub mod gateway;
pub mod http;
pub mod init;
pub mod login;
pub mod policy;
pub mod random;
pub mod recording;
pub mod request;
pub mod serve;
pub mod session;
pub mod sweep;
pub mod tunnel;
pub mod waiting;

#[cfg(test)]
pub mod testing;
