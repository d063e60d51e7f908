//! What is wrong with a set of policies: everything at once, each with its place.

use std::fmt;

/// One mistake in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    pub file: String,
    /// Counted from 1, where it is known.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// All mistakes of a set; never empty. Prints one a line, as `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyErrors(Vec<PolicyError>);

impl PolicyErrors {
    pub fn one(file: impl Into<String>, line: Option<usize>, message: impl Into<String>) -> Self {
        Self(vec![PolicyError { file: file.into(), line, message: message.into() }])
    }

    pub fn iter(&self) -> impl Iterator<Item = &PolicyError> {
        self.0.iter()
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// Collects mistakes while there is still something to look at.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<PolicyError>);

impl Mistakes {
    pub(super) fn push(&mut self, file: &str, line: Option<usize>, message: impl Into<String>) {
        let error = PolicyError { file: file.to_owned(), line, message: message.into() };
        if !self.0.contains(&error) {
            self.0.push(error);
        }
    }

    /// A mistake that Cedar found, at the first place it names in `source`.
    pub(super) fn push_diagnostic(&mut self, file: &str, source: &str, found: &dyn miette::Diagnostic) {
        let at = found.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
        let mut message = found.to_string();
        if let Some(help) = found.help() {
            message = format!("{message} ({help})");
        }
        self.push(file, at.map(|at| line_of(source, at)), message);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn extend(&mut self, errors: PolicyErrors) {
        self.0.extend(errors.0);
    }

    /// `value`, unless there were mistakes.
    pub(super) fn or<T>(mut self, value: Option<T>) -> Result<T, PolicyErrors> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => {
                self.0.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
                Err(PolicyErrors(self.0))
            }
        }
    }
}

/// The line, counted from 1, of a byte of `source`.
pub(super) fn line_of(source: &str, at: usize) -> usize {
    1 + source.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
