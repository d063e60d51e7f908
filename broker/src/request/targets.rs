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

#[cfg(test)]
mod tests {
    use super::*;
    use daypass_protocol::api::{CraClass, DeviceState};

    fn ask(channels: &str, targets: &[&str]) -> Result<Vec<ForwardTarget>, UnfitTargets> {
        ask_of(channels, targets, &[])
    }

    /// Asked of a device whose product line lists `listed`, at a broker with two names.
    fn ask_of(channels: &str, targets: &[&str], listed: &[&str]) -> Result<Vec<ForwardTarget>, UnfitTargets> {
        let parsed = |all: &[&str]| all.iter().map(|target| target.parse().unwrap()).collect::<Vec<_>>();
        let ask = Ask {
            device: "gw-0042".parse().unwrap(),
            login: "diag".parse().unwrap(),
            channels: channels.parse().unwrap(),
            duration_s: 600,
            reason: "r".to_owned(),
            ticket: None,
            emergency: false,
            command: None,
            forward_targets: parsed(targets),
        };
        let device = DeviceFacts {
            id: "gw-0042".parse().unwrap(),
            product_line: "edge".parse().unwrap(),
            cra_class: CraClass::Default,
            state: DeviceState::Active,
            labels: [].into(),
            forward_targets: parsed(listed),
        };
        of(&ask, &device, &["access.example.com".to_owned(), "10.0.0.7".to_owned(), "127.0.0.1".to_owned()])
    }

    #[test]
    fn promise_1_no_grant_no_bytes_no_forward_leads_to_the_devices_ssh() {
        for own in ["127.0.0.1:22", "localhost:22", "[::1]:22", "0.0.0.0:22"] {
            assert!(matches!(ask("forward", &["127.0.0.1:80", own]), Err(UnfitTargets::OwnSsh(_))), "{own}");
            let listed = ask_of("forward", &[], &[own]);
            assert!(matches!(listed, Err(UnfitTargets::OwnSsh(_))), "a product line that lists {own}");
        }
        assert!(ask("forward", &["plc.local:22"]).is_ok(), "another machine's SSH is policy's to judge");
    }

    #[test]
    fn promise_1_no_grant_no_bytes_no_forward_leads_into_the_broker() {
        for broker in ["access.example.com:443", "ACCESS.example.com:5432", "10.0.0.7:22"] {
            assert!(matches!(ask("forward", &[broker]), Err(UnfitTargets::Broker(_))), "{broker}");
        }
        assert!(
            ask("forward", &["127.0.0.1:8443"]).is_ok(),
            "the device's own loopback, wherever the broker is"
        );
    }

    #[test]
    fn targets_go_with_the_channel_and_are_bounded() {
        assert_eq!(ask("shell", &["127.0.0.1:80"]), Err(UnfitTargets::WithoutChannel));
        assert_eq!(ask("shell", &[]), Ok(vec![]));
        assert_eq!(ask("forward", &[]), Err(UnfitTargets::Nowhere));
        assert_eq!(ask_of("forward", &[], &["127.0.0.1:80"]).unwrap().len(), 1);
        let many: Vec<String> = (0..=MAX_TARGETS).map(|n| format!("127.0.0.1:{}", 1000 + n)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(ask("forward", &many), Err(UnfitTargets::TooMany));
        assert_eq!(ask("forward", &many[1..]).unwrap().len(), MAX_TARGETS);
        assert_eq!(ask("forward", &["127.0.0.1:80", "127.0.0.1:80"]).unwrap().len(), 1);
    }
}
