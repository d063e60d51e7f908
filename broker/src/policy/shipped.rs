//! The policies that Daypass ships: an example to start from, and what the demo runs on.

use super::{Policies, PolicyErrors};

/// Name and text of the schema.
pub const SCHEMA: (&str, &str) = ("schema.cedarschema", include_str!("../../../policies/schema.cedarschema"));

/// Names and texts of the policies.
pub const POLICIES: &[(&str, &str)] = &[
    ("duties.cedar", include_str!("../../../policies/duties.cedar")),
    ("everyone.cedar", include_str!("../../../policies/everyone.cedar")),
    ("limits.cedar", include_str!("../../../policies/limits.cedar")),
    ("support.cedar", include_str!("../../../policies/support.cedar")),
];

/// Names and texts of their cases.
pub const CASES: &[(&str, &str)] = &[
    ("cases/connect.toml", include_str!("../../../policies/cases/connect.toml")),
    ("cases/duties.toml", include_str!("../../../policies/cases/duties.toml")),
];

/// Every file of the shipped `policies/` folder, by its path in it.
pub fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    std::iter::once(SCHEMA).chain(POLICIES.iter().copied()).chain(CASES.iter().copied())
}

/// The shipped set, loaded.
pub fn policies() -> Result<Policies, PolicyErrors> {
    let files: Vec<(String, String)> =
        POLICIES.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Policies::from_sources(SCHEMA.1, &files)
}
