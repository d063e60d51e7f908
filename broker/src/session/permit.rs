//! The permit: the right to one session certificate.

use crate::policy::SessionLimits;
use crate::request::Scope;
use daypass_protocol::certificate::Principal;
use daypass_protocol::ids::{DeviceId, Login, RequestId, SessionId};
use daypass_protocol::time::Timestamp;

/// Made by [`crate::session::open`] after the live grant was found and policy was asked once more;
/// consumed by [`crate::certificate::issue::session`]. Not `Clone`: one permit, one certificate.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    pub(super) session: SessionId,
    pub(super) grant: RequestId,
    pub(super) person_label: String,
    pub(super) device: DeviceId,
    pub(super) login: Login,
    pub(super) scope: Scope,
    pub(super) ends_at: Timestamp,
    pub(super) limits: SessionLimits,
    /// Hash of the policies that were asked.
    pub(super) policy_set: String,
}

impl Permit {
    pub fn session(&self) -> &SessionId {
        &self.session
    }
    pub fn grant(&self) -> &RequestId {
        &self.grant
    }
    /// E-mail address or subject, for the key id.
    pub fn person_label(&self) -> &str {
        &self.person_label
    }
    pub fn principal(&self) -> Principal {
        Principal::LoginOnDevice(self.login.clone(), self.device.clone())
    }
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
    pub fn ends_at(&self) -> Timestamp {
        self.ends_at
    }
}
