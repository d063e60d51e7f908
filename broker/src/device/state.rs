//! The states of a device and the steps between them.
//!
//! ```text
//! manufactured → provisioned → active ⇄ suspended
//!                              active → quarantined → active
//! active, suspended → in_repair, transferred, unsupported, lost;  those → active
//! anything but retired → retired, which is the end
//! ```

use daypass_protocol::api::DeviceState;
use std::fmt;

/// A legal step in a device's life; [`Step::new`] is the only way to one. The schema's table
/// `device_transition` has the same steps, and a test compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    from: Option<DeviceState>,
    to: DeviceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {} cannot become {}", Spoken(.from), as_str(*.to))]
pub struct IllegalStep {
    pub from: Option<DeviceState>,
    pub to: DeviceState,
}

impl Step {
    /// `from` is `None` for a device that is not in the inventory yet.
    pub fn new(from: Option<DeviceState>, to: DeviceState) -> Result<Self, IllegalStep> {
        use DeviceState::{
            Active, InRepair, Lost, Manufactured, Provisioned, Quarantined, Retired, Suspended, Transferred,
            Unsupported,
        };
        let legal = match from {
            None => matches!(to, Manufactured | Provisioned | Active),
            Some(Manufactured) => matches!(to, Provisioned | Retired),
            Some(Provisioned) => matches!(to, Active | Retired),
            Some(Active) => {
                matches!(to, Suspended | Quarantined | InRepair | Transferred | Unsupported | Lost | Retired)
            }
            Some(Suspended) => {
                matches!(to, Active | Quarantined | InRepair | Transferred | Unsupported | Lost | Retired)
            }
            Some(Quarantined | InRepair | Transferred | Unsupported) => matches!(to, Active | Lost | Retired),
            Some(Lost) => matches!(to, Active | Quarantined | Retired),
            Some(Retired) => false,
        };
        if legal { Ok(Self { from, to }) } else { Err(IllegalStep { from, to }) }
    }

    pub fn from(self) -> Option<DeviceState> {
        self.from
    }

    pub fn to(self) -> DeviceState {
        self.to
    }
}

/// What a tunnel of a device in this state may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The tunnel is welcome, and sessions may use it.
    Sessions,
    /// The tunnel is welcome, and no session may use it.
    TunnelOnly,
    /// No tunnel.
    Nothing,
}

pub(crate) fn admission(state: DeviceState) -> Admission {
    match state {
        DeviceState::Active | DeviceState::InRepair => Admission::Sessions,
        DeviceState::Suspended => Admission::TunnelOnly,
        DeviceState::Manufactured
        | DeviceState::Provisioned
        | DeviceState::Quarantined
        | DeviceState::Transferred
        | DeviceState::Unsupported
        | DeviceState::Lost
        | DeviceState::Retired => Admission::Nothing,
    }
}

/// As the database writes it.
pub(crate) const fn as_str(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Manufactured => "manufactured",
        DeviceState::Provisioned => "provisioned",
        DeviceState::Active => "active",
        DeviceState::Suspended => "suspended",
        DeviceState::Quarantined => "quarantined",
        DeviceState::InRepair => "in_repair",
        DeviceState::Transferred => "transferred",
        DeviceState::Unsupported => "unsupported",
        DeviceState::Lost => "lost",
        DeviceState::Retired => "retired",
    }
}

pub(crate) const ALL: [DeviceState; 10] = [
    DeviceState::Manufactured,
    DeviceState::Provisioned,
    DeviceState::Active,
    DeviceState::Suspended,
    DeviceState::Quarantined,
    DeviceState::InRepair,
    DeviceState::Transferred,
    DeviceState::Unsupported,
    DeviceState::Lost,
    DeviceState::Retired,
];

/// As the database reads it; `None` for a word that is no state.
pub(crate) fn parse(text: &str) -> Option<DeviceState> {
    ALL.into_iter().find(|state| as_str(*state) == text)
}

/// A step's origin as the database writes it.
pub(crate) fn origin(from: Option<DeviceState>) -> &'static str {
    from.map_or("none", as_str)
}

struct Spoken<'a>(&'a Option<DeviceState>);

impl fmt::Display for Spoken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("not in the inventory", as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use sqlx::Row as _;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn the_legal_steps_in_code_are_those_of_the_schema() {
        let db = testing::sqlite().await;
        let rows = sqlx::query("SELECT from_state, to_state FROM device_transition")
            .fetch_all(db.pool())
            .await
            .unwrap();
        let schema: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let mut code = BTreeSet::new();
        for from in ALL.into_iter().map(Some).chain([None]) {
            for to in ALL {
                if Step::new(from, to).is_ok() {
                    code.insert((origin(from).to_owned(), as_str(to).to_owned()));
                }
            }
        }
        assert_eq!(code, schema);
    }

    #[test]
    fn a_retired_device_never_comes_back() {
        for to in ALL {
            assert!(Step::new(Some(DeviceState::Retired), to).is_err());
        }
    }
}
