//! Channels: what a session may do.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One kind of channel. Kinds that are not listed here (agent, X11, remote forwarding, …) do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// An interactive login shell on a PTY.
    Shell,
    /// One command, with or without a PTY.
    Exec,
    /// The SFTP subsystem.
    Sftp,
    /// A TCP connection to a target that the grant names.
    Forward,
}

impl ChannelKind {
    pub const ALL: [Self; 4] = [Self::Shell, Self::Exec, Self::Sftp, Self::Forward];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Exec => "exec",
            Self::Sftp => "sftp",
            Self::Forward => "forward",
        }
    }
}

impl fmt::Display for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown channel {0:?}: one of shell, exec, sftp, forward")]
pub struct UnknownChannel(pub String);

impl FromStr for ChannelKind {
    type Err = UnknownChannel;
    fn from_str(text: &str) -> Result<Self, UnknownChannel> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownChannel(text.chars().take(32).collect()))
    }
}

/// The channels of a request or a grant, without order or repetition. Text form: `shell,exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct ChannelSet(pub BTreeSet<ChannelKind>);

impl ChannelSet {
    pub fn contains(&self, kind: ChannelKind) -> bool {
        self.0.contains(&kind)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_subset(&self, of: &Self) -> bool {
        self.0.is_subset(&of.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = ChannelKind> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<ChannelKind> for ChannelSet {
    fn from_iter<I: IntoIterator<Item = ChannelKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().collect())
    }
}

impl FromStr for ChannelSet {
    type Err = UnknownChannel;
    fn from_str(text: &str) -> Result<Self, UnknownChannel> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
    }
}

impl fmt::Display for ChannelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, kind) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(kind.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_set_reads_back_as_it_prints() {
        let set: ChannelSet = "exec, shell,exec".parse().unwrap();
        assert_eq!(set.to_string(), "shell,exec");
        assert!("shell,x11".parse::<ChannelSet>().is_err());
        assert!("".parse::<ChannelSet>().unwrap().is_empty());
    }
}
