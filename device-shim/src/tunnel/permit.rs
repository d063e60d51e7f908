//! May this channel be opened? The checks of `TUNNEL.md` section 7.1, in its order.
//!
//! [`judge`] is the only way to a [`Permit`], and a permit is the only thing that
//! [`super::channel`] starts a process for.

use super::forward::Rules;
use crate::clock::Clock;
use crate::trust::Trust;
use daypass_protocol::certificate::{Expectation, Principal, Verified, verify_openssh};
use daypass_protocol::ids::{DeviceId, Login, SessionId};
use daypass_protocol::signed::SignedText;
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::hello::Binding;
use daypass_protocol::tunnel::open::{
    MAX_ENV, MAX_ENV_VALUE, Open, OpenKind, Received, Refused, RefusedCode, UnverifiedClaim, env_is_allowed,
};
use std::collections::{BTreeMap, HashSet};

/// What one tunnel remembers between channels.
#[derive(Debug, Default)]
pub struct Gate {
    /// The greatest counter of any `open` that was properly signed for this tunnel.
    last_counter: Option<u64>,
    /// Sessions that the broker ended; they stay ended.
    ended: HashSet<SessionId>,
    /// Why channels are refused for now.
    pub closed: Option<String>,
}

/// Most ended sessions that are remembered; past it the oldest knowledge is the certificate's own end.
const MAX_ENDED: usize = 4096;

impl Gate {
    pub fn end(&mut self, session: &SessionId) {
        if self.ended.len() >= MAX_ENDED {
            self.ended.clear();
        }
        self.ended.insert(session.clone());
    }
}

/// What a judgement depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub own: &'a DeviceId,
    pub trust: &'a Trust,
    pub clock: &'a Clock,
    /// Of this tunnel.
    pub binding: &'a Binding,
    pub logins: &'a BTreeMap<Login, String>,
    pub forward: &'a Rules,
    pub remote_access: bool,
    pub open_channels: usize,
    pub max_channels: usize,
}

/// Leave to open one channel.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    open: Open,
    verified: Verified,
    user: String,
}

impl Permit {
    pub fn session(&self) -> &SessionId {
        &self.open.session
    }
    pub fn channel(&self) -> u32 {
        self.open.channel
    }
    pub fn login(&self) -> &Login {
        &self.open.login
    }
    /// The Unix user that the login is mapped to.
    pub fn user(&self) -> &str {
        &self.user
    }
    pub fn kind(&self) -> &OpenKind {
        &self.open.kind
    }
    /// Where a forward leads.
    pub fn target(&self) -> Option<ForwardTarget> {
        match &self.open.kind {
            OpenKind::Forward { host, port } => ForwardTarget::new(host, (*port).into()).ok(),
            _ => None,
        }
    }
    pub fn env(&self) -> &[(String, String)] {
        &self.open.env
    }
    /// Of the tunnel that it was asked on.
    pub fn binding(&self) -> &Binding {
        &self.open.binding
    }
    /// Present when it is leave to go on with a channel, not to start one.
    pub fn resume(&self) -> Option<Received> {
        self.open.resume
    }
    pub fn person(&self) -> &str {
        &self.verified.key_id().person
    }
    pub fn grant(&self) -> Option<&str> {
        self.verified.key_id().grant.as_ref().map(daypass_protocol::ids::RequestId::as_str)
    }
    pub fn serial(&self) -> u64 {
        self.verified.serial()
    }
    /// When everything it allows has to be over.
    pub fn valid_before(&self) -> Timestamp {
        self.verified.valid_before()
    }
}

/// Why a channel is not opened: what the far side is told, and the cause for the log.
#[derive(Debug)]
pub struct Refusal {
    pub told: Refused,
    pub cause: String,
}

impl Refusal {
    pub fn new(code: RefusedCode, message: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { told: Refused { code, message: message.into() }, cause: cause.into() }
    }

    fn malformed(cause: &impl ToString) -> Self {
        Self::new(RefusedCode::Malformed, "the request to open a channel does not read", cause.to_string())
    }

    /// One message for every reason: the far side learns nothing to try next.
    fn not_authorized(cause: &impl ToString) -> Self {
        Self::new(RefusedCode::NotAuthorized, "the device does not accept this session", cause.to_string())
    }

    fn forbidden(message: &str) -> Self {
        Self::new(RefusedCode::KindForbidden, message, message)
    }
}

/// Runs every check. Leaves its mark in `gate` even when it refuses: a counter once used is used.
pub fn judge(signed: &SignedText, facts: &Facts<'_>, gate: &mut Gate) -> Result<Permit, Refusal> {
    // 1. The certificate, which the body itself names.
    let claim = UnverifiedClaim::read(signed).map_err(|error| Refusal::malformed(&error))?;
    let principal = Principal::LoginOnDevice(claim.login, facts.own.clone());
    let expect = Expectation {
        cas: facts.trust.user_cas(),
        principal: Some(&principal),
        now: facts.clock.now(),
        source: None,
        revoked_serials: facts.trust.revoked_serials(),
    };
    let verified =
        verify_openssh(&claim.certificate, &expect).map_err(|error| Refusal::not_authorized(&error))?;

    // 2. Its key signed this very body.
    let open =
        Open::open_with(signed, verified.public_key()).map_err(|error| Refusal::not_authorized(&error))?;
    if open.v != 1 {
        return Err(Refusal::malformed(&format!("an open request of version {}", open.v)));
    }
    // The far side has shown a certificate by our CA that is valid now: so it is at least its first moment.
    facts.clock.learn(verified.valid_after());

    // 3. For this tunnel, and for the first time.
    if open.binding != *facts.binding {
        return Err(Refusal::not_authorized(&"made for another tunnel"));
    }
    if gate.last_counter.is_some_and(|last| open.counter <= last) {
        return Err(Refusal::not_authorized(&format!("counter {} was used before", open.counter)));
    }
    gate.last_counter = Some(open.counter);

    // 4. For the session that the certificate was made for.
    if verified.key_id().session.as_ref() != Some(&open.session) {
        return Err(Refusal::not_authorized(&"the certificate is for another session"));
    }
    if gate.ended.contains(&open.session) {
        return Err(Refusal::not_authorized(&format!("session {} was ended", open.session)));
    }

    // 5. Of a kind that the certificate permits.
    judge_kind(&open.kind, &verified, facts.forward)?;

    // 6. On a device that serves it.
    if let Some(reason) = &gate.closed {
        let message = format!("this device is suspended: {reason}");
        return Err(Refusal::new(RefusedCode::SwitchedOff, message.clone(), message));
    }
    if !facts.remote_access {
        let message = "remote access is switched off on this device";
        return Err(Refusal::new(RefusedCode::SwitchedOff, message, message));
    }
    let Some(user) = facts.logins.get(&open.login) else {
        let message = format!("login {} is not served on this device", open.login);
        return Err(Refusal::new(RefusedCode::UnknownLogin, message.clone(), message));
    };
    // One that goes on has its place already.
    if facts.open_channels >= facts.max_channels && open.resume.is_none() {
        let message = format!("all {} channels of this device are in use", facts.max_channels);
        return Err(Refusal::new(RefusedCode::Busy, message.clone(), message));
    }
    check_env(&open.env)?;
    Ok(Permit { user: user.clone(), open, verified })
}

fn judge_kind(kind: &OpenKind, verified: &Verified, forward: &Rules) -> Result<(), Refusal> {
    if kind.pty().is_some() && !verified.permits_pty() {
        return Err(Refusal::forbidden("this grant does not permit a terminal"));
    }
    if let Some(forced) = verified.force_command() {
        // Not replaced, as sshd does: then the recording would name another command than the one that ran.
        match kind {
            OpenKind::Exec { command, .. } if command.0 == forced.as_bytes() => {}
            _ => return Err(Refusal::forbidden("this grant permits one command only")),
        }
    }
    match kind {
        OpenKind::Exec { command, .. } if command.0.contains(&0) => {
            Err(Refusal::malformed(&"a command with a zero byte"))
        }
        OpenKind::Sftp if !verified.permits_sftp() => {
            Err(Refusal::forbidden("this grant does not permit sftp"))
        }
        OpenKind::Shell { .. } | OpenKind::Exec { .. } | OpenKind::Sftp => Ok(()),
        OpenKind::Forward { host, port } => {
            let target =
                ForwardTarget::new(host, (*port).into()).map_err(|error| Refusal::malformed(&error))?;
            if !verified.permits_forward_to(&target) {
                return Err(Refusal::forbidden("this grant does not permit a forward to there"));
            }
            if !forward.allow(&target) {
                return Err(Refusal::forbidden("this device does not forward to there"));
            }
            Ok(())
        }
    }
}

fn check_env(env: &[(String, String)]) -> Result<(), Refusal> {
    if env.len() > MAX_ENV {
        return Err(Refusal::malformed(&format!("{} environment variables", env.len())));
    }
    if env.iter().any(|(_, value)| value.len() > MAX_ENV_VALUE) {
        return Err(Refusal::malformed(&"an environment variable that is too long"));
    }
    Ok(())
}

/// The variables of `env` that reach a process: listed ones, without zero bytes, and never the ones that
/// the shim sets itself.
pub fn passed_env(env: &[(String, String)]) -> impl Iterator<Item = (String, String)> + '_ {
    env.iter()
        .filter(|(name, value)| {
            env_is_allowed(name)
                && !matches!(name.as_str(), "DAYPASS_SESSION" | "TERM")
                && !value.contains('\0')
        })
        .cloned()
}

#[cfg(test)]
mod tests;
