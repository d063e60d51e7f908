//! `daypass-shim status`: what the state directory says, for people.

use crate::config::Config;
use crate::state::{StateDir, StateError};
use crate::trust::Trust;
use daypass_protocol::signed::fingerprint;
use std::fmt::Write as _;

/// Several lines, `name: value`. Reads only; an unreadable state is an error.
pub fn status(config: &Config) -> Result<String, StateError> {
    let state = StateDir::new(&config.state_dir);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{:<18}{value}", format!("{name}:"));
    };
    if state.is_retired() && !state.is_enrolled() {
        line("state", "retired; key and state were wiped");
        return Ok(out);
    }
    let identity = state.identity()?;
    let key = state.device_key()?;
    let trust = Trust::load(&state.trust()?, &identity.device).map_err(|error| StateError::Damaged {
        path: state.path().join("trust.json"),
        why: error.to_string(),
    })?;
    let running = matches!(state.lock(), Err(StateError::Locked { .. }));
    line("device", identity.device.as_str());
    line("serial number", &identity.serial_number);
    line("broker", config.broker_url.as_ref().unwrap_or(&identity.broker_url));
    line("device key", &fingerprint(key.public_key()));
    line("trust bundle", &format!("version {}, {} revoked", trust.version(), trust.revoked_serials().len()));
    line("last signed time", &state.time()?.to_string());
    line("remote access", if config.remote_access { "on" } else { "off" });
    let logins: Vec<_> = config.logins.iter().map(|(login, user)| format!("{login} (user {user})")).collect();
    line("logins", if logins.is_empty() { "none are served".to_owned() } else { logins.join(", ") }.as_str());
    line("running", if running { "yes" } else { "no" });
    Ok(out)
}
