//! Everything a person can do, as policies name it.

use std::fmt;

/// What an action is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Fleet,
    Device,
    Request,
    Session,
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal about $about:ident,)*) => {
        /// Something a person does. Each is a Cedar action of the same name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action { $($(#[$doc])* $name,)* }

        impl Action {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name of the Cedar action.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The kind of resource that it is asked about.
            pub const fn about(self) -> About {
                match self { $(Self::$name => About::$about,)* }
            }
        }
    };
}

actions! {
    /// Making a request and opening sessions under it. Decided by [`super::evaluate`], which knows what is
    /// asked for; [`super::may`] refuses it.
    Connect = "connect" about Device,
    ListDevices = "list_devices" about Fleet,
    ReadDevice = "read_device" about Device,
    ReadProductLines = "read_product_lines" about Fleet,
    ListRequests = "list_requests" about Fleet,
    ReadRequest = "read_request" about Request,
    /// Answering a request, with yes or with no.
    Approve = "approve" about Request,
    Cancel = "cancel" about Request,
    /// Ending a live grant and its sessions.
    RevokeGrant = "revoke_grant" about Request,
    ListSessions = "list_sessions" about Fleet,
    ReadSession = "read_session" about Session,
    /// Reading what a session recorded.
    Replay = "replay" about Session,
    Watch = "watch" about Session,
    EndSession = "end_session" about Session,
    Review = "review" about Session,
    /// Making enrolment tokens.
    EnrolDevice = "enrol_device" about Fleet,
    SuspendDevice = "suspend_device" about Device,
    ResumeDevice = "resume_device" about Device,
    RetireDevice = "retire_device" about Device,
    ReadAudit = "read_audit" about Fleet,
    AdministerPolicy = "administer_policy" about Fleet,
    Administer = "administer" about Fleet,
}

impl Action {
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.as_str() == text)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
