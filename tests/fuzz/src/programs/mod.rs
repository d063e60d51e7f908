//! Modules of the programs, from where they stand.

/// What the shim makes of the broker's challenge.
#[path = "../../../../device-shim/src/challenge.rs"]
pub mod challenge;
/// What the broker makes of a device's hello.
#[path = "../../../../broker/src/tunnel/hello.rs"]
pub mod claim;
/// The gateway's reader of file transfers.
#[path = "../../../../broker/src/recording/sftp/mod.rs"]
pub mod sftp;
