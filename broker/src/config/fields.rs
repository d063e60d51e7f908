//! Reads a TOML table key by key and collects what is wrong with it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use url::Url;
use zeroize::Zeroizing;

/// One mistake: a key, and what is wrong with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub key: String,
    pub reason: String,
}

/// All mistakes of a file, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} to mend",
            if self.0.len() == 1 { "1 mistake".to_owned() } else { format!("{} mistakes", self.0.len()) }
        )?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}: {}", mistake.key, mistake.reason))
    }
}

pub(super) struct Fields {
    table: toml::Table,
    base: PathBuf,
    read: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

impl Fields {
    pub(super) fn new(table: toml::Table, base: &Path) -> Self {
        Self { table, base: base.to_owned(), read: BTreeSet::new(), mistakes: Vec::new() }
    }

    pub(super) fn mistake(&mut self, key: &str, reason: &str) {
        self.mistakes.push(Mistake { key: key.to_owned(), reason: reason.to_owned() });
    }

    fn take(&mut self, key: &str) -> Option<toml::Value> {
        self.read.insert(key.to_owned());
        let mut parts = key.split('.');
        let mut value = self.table.get(parts.next()?)?;
        for part in parts {
            value = value.as_table()?.get(part)?;
        }
        Some(value.clone())
    }

    pub(super) fn text_opt(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            toml::Value::String(text) if !text.is_empty() => Some(text),
            toml::Value::String(_) => {
                self.mistake(key, "is empty");
                None
            }
            other => {
                self.mistake(key, &format!("is of type {}, and text is needed", other.type_str()));
                None
            }
        }
    }

    pub(super) fn text_or(&mut self, key: &str, default: &str) -> String {
        self.text_opt(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn parsed_or<T: FromStr<Err: fmt::Display>>(&mut self, key: &str, default: &str) -> Option<T> {
        let text = self.text_or(key, default);
        text.parse().map_err(|error| self.mistake(key, &format!("{text:?}: {error}"))).ok()
    }

    pub(super) fn url(&mut self, key: &str) -> Option<Url> {
        let Some(text) = self.text_opt(key) else {
            if !self.mistakes.iter().any(|mistake| mistake.key == key) {
                self.mistake(key, "is needed: the address under which people and devices reach this broker");
            }
            return None;
        };
        match Url::parse(&text) {
            Ok(url) if url.scheme() == "https" && url.host().is_some() && matches!(url.path(), "" | "/") => {
                Some(url)
            }
            Ok(_) => {
                self.mistake(key, "must be https:// and a host, without a path");
                None
            }
            Err(error) => {
                self.mistake(key, &format!("is not a URL: {error}"));
                None
            }
        }
    }

    pub(super) fn path_opt(&mut self, key: &str) -> Option<PathBuf> {
        self.text_opt(key).map(|text| self.base.join(text))
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let before = self.mistakes.len();
        let path = self.path_opt(key);
        if path.is_none() && self.mistakes.len() == before {
            self.mistake(key, "is needed");
        }
        path
    }

    pub(super) fn number_or(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        match self.take(key) {
            None => default,
            Some(toml::Value::Integer(number)) => match u64::try_from(number) {
                Ok(number) if range.contains(&number) => number,
                _ => {
                    let reason = format!("{number} is not between {} and {}", range.start(), range.end());
                    self.mistake(key, &reason);
                    default
                }
            },
            Some(other) => {
                self.mistake(key, &format!("is of type {}, and a whole number is needed", other.type_str()));
                default
            }
        }
    }

    /// A number of things in memory.
    pub(super) fn count_or(&mut self, key: &str, default: usize, range: RangeInclusive<usize>) -> usize {
        let range = *range.start() as u64..=*range.end() as u64;
        usize::try_from(self.number_or(key, default as u64, range)).unwrap_or(default)
    }

    /// A secret alone in a file, without the newline at its end.
    pub(super) fn secret_file(&mut self, key: &str, path: &Path) -> Option<Zeroizing<String>> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let text = Zeroizing::new(text);
                let secret = text.trim_end_matches(['\r', '\n']);
                if secret.is_empty() {
                    self.mistake(key, &format!("{} is empty", path.display()));
                    return None;
                }
                Some(Zeroizing::new(secret.to_owned()))
            }
            Err(error) => {
                self.mistake(key, &format!("{} cannot be read: {error}", path.display()));
                None
            }
        }
    }

    /// A whole table, which its own type checks.
    pub(super) fn section(&mut self, key: &str) -> Option<toml::Value> {
        self.take(key)
    }

    /// The mistakes, and a key that nobody asked for is one: a misspelt key must not be a silent default.
    pub(super) fn finish(mut self) -> Mistakes {
        let mut unknown = Vec::new();
        leaves(&toml::Value::Table(self.table.clone()), String::new(), &self.read, &mut unknown);
        for key in unknown {
            self.mistake(&key, "is not a key of this configuration");
        }
        self.mistakes.sort_by(|a, b| a.key.cmp(&b.key));
        Mistakes(self.mistakes)
    }
}

fn leaves(value: &toml::Value, at: String, read: &BTreeSet<String>, unknown: &mut Vec<String>) {
    match value {
        _ if read.contains(&at) => {}
        toml::Value::Table(table) => {
            for (key, value) in table {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                leaves(value, at, read, unknown);
            }
        }
        _ => unknown.push(at),
    }
}
