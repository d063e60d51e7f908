//! `daypass-broker policy check | test | explain`: files alone, no server.

use super::cases::{self, CaseFile, Report};
use super::set::read_file;
use super::{Policies, PolicyErrors};
use std::path::Path;

/// `policy check`: whether a folder of policies and its cases load. The answer is one line to print.
pub fn check(dir: &Path) -> Result<String, PolicyErrors> {
    let policies = Policies::load(dir)?;
    let files = cases::load(dir)?;
    Ok(format!(
        "{}: {} policies, {} files of cases, sha256 {}",
        dir.display(),
        policies.ids().count(),
        files.len(),
        policies.hash()
    ))
}

/// `policy test`: what came of every case. Print it, and exit with 1 unless [`Report::passed`].
pub fn test(dir: &Path) -> Result<Report, PolicyErrors> {
    let policies = Policies::load(dir)?;
    let files = cases::load(dir)?;
    let report = cases::run(&policies, &files);
    if report.outcomes.is_empty() {
        return Err(PolicyErrors::one(dir.display().to_string(), None, "there are no cases in cases/*.toml"));
    }
    Ok(report)
}

/// `policy explain`: the decision on each ask of a file, with the policies that made it. The file is
/// written like one of `cases/`; `expect` may be left out.
pub fn explain(dir: &Path, asks: &Path) -> Result<String, PolicyErrors> {
    let policies = Policies::load(dir)?;
    let file = CaseFile::parse(&asks.display().to_string(), &read_file(asks)?)?;
    Ok(file.explain(&policies))
}
