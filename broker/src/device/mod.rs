//! Deployed products: the inventory, how a device comes into it, and what happens in its life.

mod bundle;
mod changes;
pub mod enrolment;
#[allow(unused_qualifications, reason = "what utoipa writes for query parameters")]
pub mod http;
pub mod lines;
mod state;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
mod trust;

pub use bundle::{BundleMakeError, MadeBundle};
pub use changes::{ChangeError, Changes, DeviceChanged, resume, suspend};
pub use state::{IllegalStep, Step};
pub use trust::{EvidenceSigner, HostCertifier, Trust, TrustError};

pub(crate) use bundle::current as current_bundle;
pub(crate) use state::{Admission, admission};
