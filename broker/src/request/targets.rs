//! Where the forwards of a request lead.

use crate::policy::DeviceFacts;
use daypass_protocol::api::Ask;
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::target::{ForwardTarget, MAX_TARGETS};

/// Why forwards cannot be asked for like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitTargets {
    #[error("targets were named without the channel forward")]
    WithoutChannel,
    #[error("no target is listed for the product line, so name one: --forward HOST:PORT")]
    Nowhere,
    #[error("at most {MAX_TARGETS} targets can be named")]
    TooMany,
    #[error(
        "{0} is the device's own SSH; no forward leads there, because what goes through it is not recorded"
    )]
    OwnSsh(ForwardTarget),
    #[error("{0} is the broker itself; no forward leads there")]
    Broker(ForwardTarget),
}

/// The targets of an ask: those it names, or those of the product line. Whether somebody may have them is
/// for policy; some are for nobody.
pub(super) fn of(
    ask: &Ask,
    device: &DeviceFacts,
    own_hosts: &[String],
) -> Result<Vec<ForwardTarget>, UnfitTargets> {
    if !ask.channels.contains(ChannelKind::Forward) {
        let none = ask.forward_targets.is_empty();
        return if none { Ok(Vec::new()) } else { Err(UnfitTargets::WithoutChannel) };
    }
    let named = if ask.forward_targets.is_empty() { &device.forward_targets } else { &ask.forward_targets };
    let mut targets = named.clone();
    targets.sort();
    targets.dedup();
    if targets.is_empty() {
        return Err(UnfitTargets::Nowhere);
    }
    if targets.len() > MAX_TARGETS {
        return Err(UnfitTargets::TooMany);
    }
    for target in &targets {
        if target.is_own_ssh() {
            return Err(UnfitTargets::OwnSsh(target.clone()));
        }
        // Loopback is the device's own, wherever the broker runs.
        let same = |own: &String| {
            ForwardTarget::new(own, target.port().into())
                .is_ok_and(|own| !own.is_loopback() && own == *target)
        };
        if own_hosts.iter().any(same) {
            return Err(UnfitTargets::Broker(target.clone()));
        }
    }
    Ok(targets)
}
