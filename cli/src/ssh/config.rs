//! Generated configuration for the system's `ssh`: ssh_config(5) and known_hosts.
//!
//! Two files, because they serve two needs:
//! - `ssh_config` is for `daypass ssh`, as `ssh -F`: this profile's settings first, then the person's own
//!   and the system's, as without `-F`. The first value of an option wins, so ours cannot be undone.
//! - `ssh_include` is included from `~/.ssh/config` by `daypass setup ssh`, for plain ssh, scp and rsync.
//!
//! `daypass ssh` calls a device `DEVICE.PROFILE.as.daypass` (with HostName set to the real name), and
//! `ssh_include` leaves such names alone. Identity files add up in ssh: without this, a session of one
//! profile that is refused would be tried again with the identity of another.

use crate::failure::Failure;
use crate::profile::{Over, Profile};
use crate::ssh::identity::{CERTIFICATE, KEY};
use crate::ui::words;
use daypass_protocol::api::BrokerInfo;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::ssh_key::PublicKey;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const OWN_CONFIG: &str = "ssh_config";
pub const INCLUDE: &str = "ssh_include";
pub const KNOWN_HOSTS: &str = "known_hosts";

/// How long the gateway's SSH port may take to be there.
const PATIENCE: Duration = Duration::from_secs(3);

/// Stands between the device and the suffix in the names that `daypass ssh` uses.
const AS: &str = "as";

/// Where the gateway is and which CA speaks for hosts; checked, so that it can stand in a file of ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    host: String,
    port: u16,
    suffix: String,
    host_cas: Vec<String>,
}

impl Gateway {
    pub fn from_info(info: &BrokerInfo) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::BadAnswer { what: words::BROKER_INFO, why: why.to_owned() };
        let is_name = |text: &str, extra: &[u8]| {
            !text.is_empty()
                && text.len() <= 253
                && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || extra.contains(&b))
        };
        // A colon for IPv6.
        if !is_name(&info.ssh_host, b":") || info.ssh_port == 0 {
            return Err(bad(words::BAD_SSH_HOST));
        }
        if !is_name(&info.host_suffix, b"") {
            return Err(bad(words::BAD_SUFFIX));
        }
        let host_cas = info
            .host_cas
            .iter()
            .map(|line| {
                // Spelled again from the key alone: a line from elsewhere could be two.
                PublicKey::from_openssh(line)
                    .and_then(|key| PublicKey::from(key.key_data().clone()).to_openssh())
                    .map_err(|_| bad(words::BAD_HOST_CA))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if host_cas.is_empty() {
            return Err(bad(words::BAD_HOST_CA));
        }
        Ok(Self {
            host: info.ssh_host.clone(),
            port: info.ssh_port,
            suffix: info.host_suffix.clone(),
            host_cas,
        })
    }

    /// Why the SSH port cannot be reached from here, in words for the person; `None` if it can.
    pub async fn no_way_by_ssh(&self) -> Option<String> {
        let connecting = tokio::net::TcpStream::connect((self.host.as_str(), self.port));
        let why = match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => words::NO_ANSWER_IN_TIME.to_owned(),
        };
        Some(words::no_ssh_port(&self.host, self.port, &why))
    }

    /// `gw-0042.daypass`: the name that the host certificate carries.
    pub fn host_name(&self, device: &DeviceId) -> String {
        format!("{device}.{}", self.suffix)
    }

    /// The name by which `daypass ssh` calls a device.
    pub fn alias(&self, device: &DeviceId, profile: &Profile) -> String {
        format!("{device}.{}.{AS}.{}", profile.name, self.suffix)
    }

    /// Lines of known_hosts: the host CA may speak for devices and for the gateway, and for nothing else.
    fn known_hosts(&self) -> String {
        let gateway =
            if self.port == 22 { self.host.clone() } else { format!("[{}]:{}", self.host, self.port) };
        self.host_cas.iter().fold(String::new(), |mut lines, ca| {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "@cert-authority *.{} {ca}", self.suffix);
            let _ = writeln!(lines, "@cert-authority {gateway} {ca}");
            lines
        })
    }
}

/// A path as it can stand between quotes in ssh_config, where `%` and `$` are expanded, and between
/// single quotes in the shell that ssh starts.
fn quotable(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .filter(|text| !text.chars().any(|c| c.is_control() || "\"'\\%$*?[]".contains(c)))
        .ok_or_else(|| Failure::UnfitPath(path.to_owned()))
}

/// What both files say.
struct Blocks<'a> {
    gateway: &'a Gateway,
    profile: &'a Profile,
    /// This program's own path, for ssh to call.
    program: &'a Path,
}

impl Blocks<'_> {
    /// Options of both hops: prove who we are with this profile's certificate and nothing else, and
    /// believe the host CA and nothing else.
    fn both_hops(&self) -> Result<String, Failure> {
        let path = |name: &str| self.profile.path(name);
        let (key, certificate, known_hosts) = (path(KEY), path(CERTIFICATE), path(KNOWN_HOSTS));
        Ok(format!(
            "    IdentityFile \"{}\"
    CertificateFile \"{}\"
    IdentitiesOnly yes
    AddKeysToAgent no
    PreferredAuthentications publickey
    UserKnownHostsFile \"{}\"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    VerifyHostKeyDNS no
    CheckHostIP no
    CanonicalizeHostname no
",
            quotable(&key)?,
            quotable(&certificate)?,
            quotable(&known_hosts)?
        ))
    }

    fn gateway_block(&self) -> Result<String, Failure> {
        Ok(format!(
            "Host {}\n    HostName {}\n    Port {}\n    User daypass\n{}",
            jump_alias(self.profile),
            self.gateway.host,
            self.gateway.port,
            self.both_hops()?
        ))
    }

    /// `through` says how the gateway is reached.
    fn device_block(&self, patterns: &str, through: &[String]) -> Result<String, Failure> {
        Ok(format!("Host {patterns}\n    Port 22\n    {}\n{}", through.join("\n    "), self.both_hops()?))
    }

    /// As ProxyJump would do it; but ssh hands its own `-F` on without quotes, and a path may have a
    /// space in it.
    fn jump_with_own_config(&self) -> Result<String, Failure> {
        let config = self.profile.path(OWN_CONFIG);
        Ok(format!("ProxyCommand ssh -F '{}' -W '[%h]:%p' {}", quotable(&config)?, jump_alias(self.profile)))
    }

    fn jump(&self) -> String {
        format!("ProxyJump {}", jump_alias(self.profile))
    }

    /// This program as ssh calls it, in single quotes for the shell that ssh starts.
    fn own_program(&self) -> Result<String, Failure> {
        let (program, home) = (quotable(self.program)?, quotable(self.profile.home())?);
        Ok(format!("'{program}' --home '{home}' --profile {}", self.profile.name))
    }

    /// `fdpass`: this program connects and goes, and ssh talks to the gateway by itself.
    fn proxy(&self, fdpass: bool) -> Result<String, Failure> {
        let how = if fdpass { " --fdpass" } else { "" };
        Ok(format!("ProxyCommand {} proxy{how} -- '%h'", self.own_program()?))
    }

    /// How a device is reached, where `jump` is how it is through the gateway as a jump host.
    fn way(&self, over: Over, jump: impl Fn() -> Result<String, Failure>) -> Result<Vec<String>, Failure> {
        let through = match over {
            Over::Ssh => self.proxy(true)?,
            Over::Jump => jump()?,
            Over::Https => self.proxy(false)?,
        };
        let fdpass = if over == Over::Ssh { "yes" } else { "no" };
        Ok(vec![through, format!("ProxyUseFdpass {fdpass}")])
    }

    /// How `daypass ssh` reaches a device.
    fn own_way(&self, over: Over) -> Result<Vec<String>, Failure> {
        self.way(over, || self.jump_with_own_config())
    }

    /// How plain ssh reaches a device.
    fn plain_way(&self, over: Over) -> Result<Vec<String>, Failure> {
        self.way(over, || Ok(self.jump()))
    }
}

/// What `ssh` calls the gateway where it is a jump host.
pub fn jump_alias(profile: &Profile) -> String {
    format!("daypass-gateway-{}", profile.name)
}

/// The options by which `daypass ssh` goes another way than the profile's, this once.
pub fn way(gateway: &Gateway, profile: &Profile, over: Over, program: &Path) -> Result<Vec<String>, Failure> {
    Blocks { gateway, profile, program }.own_way(over)
}

/// The files of a profile, as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub own_config: String,
    pub include: String,
    pub known_hosts: String,
}

impl Files {
    /// `program` is this program's own path, for ssh to call.
    pub fn of(gateway: &Gateway, profile: &Profile, over: Over, program: &Path) -> Result<Self, Failure> {
        let suffix = &gateway.suffix;
        let blocks = Blocks { gateway, profile, program };
        // A shared master connection would carry one profile's session on another profile's identity.
        let own_config = format!(
            "{}{}{}    ControlMaster no\n    ControlPath none\n\nMatch all\nInclude ~/.ssh/config\n\
             Match all\nInclude /etc/ssh/ssh_config\n",
            words::GENERATED,
            blocks.gateway_block()?,
            blocks.device_block(&format!("*.{}.{AS}.{suffix}", profile.name), &blocks.own_way(over)?)?,
        );
        let include = format!(
            "{}{}{}\nMatch originalhost *.{suffix},!*.{AS}.{suffix} exec \"{} ssh-ready\"\n\
             \x20   ConnectTimeout 30\n",
            words::GENERATED,
            blocks.gateway_block()?,
            blocks.device_block(&format!("*.{suffix} !*.{AS}.{suffix}"), &blocks.plain_way(over)?)?,
            blocks.own_program()?,
        );
        Ok(Self { own_config, include, known_hosts: gateway.known_hosts() })
    }

    /// Writes those that differ from what is there.
    pub fn write(&self, profile: &Profile) -> Result<(), Failure> {
        for (name, content) in
            [(OWN_CONFIG, &self.own_config), (INCLUDE, &self.include), (KNOWN_HOSTS, &self.known_hosts)]
        {
            if crate::profile::file::read(&profile.path(name))?.as_ref() != Some(content) {
                profile.write(name, content.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// `~/.ssh/config` with one line that includes the profile's file, at the top, where no `Host` block can
/// catch it, under a comment that says whose it is. What an earlier set-up wrote, for this profile or
/// another, is replaced.
pub fn with_include(config: &str, include: &Path) -> Result<String, Failure> {
    let mut text = format!("{}\nInclude \"{}\"\n", words::INCLUDE_MARK, quotable(include)?);
    let mut lines = config.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim_end() == words::INCLUDE_MARK {
            lines.next_if(|next| next.starts_with("Include "));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Where the person's own configuration is.
pub fn own_ssh_dir() -> Result<PathBuf, Failure> {
    Ok(std::env::home_dir().ok_or(Failure::NoHome)?.join(".ssh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    pub(crate) fn info() -> BrokerInfo {
        BrokerInfo {
            version: "0.1.0".to_owned(),
            url: "https://127.0.0.1:8443".to_owned(),
            ssh_host: "127.0.0.1".to_owned(),
            ssh_port: 2222,
            host_suffix: "daypass".to_owned(),
            host_cas: vec![format!("{CA} host CA")],
            user_cas: vec![],
            identity_cas: vec![],
            broker_keys: vec![],
        }
    }

    fn profile(home: &str) -> Profile {
        Profile::locate("ana".parse().unwrap(), Some(Path::new(home))).unwrap()
    }

    #[test]
    fn the_host_ca_speaks_for_devices_and_the_gateway_only() {
        let gateway = Gateway::from_info(&info()).unwrap();
        assert_eq!(
            gateway.known_hosts(),
            format!("@cert-authority *.daypass {CA}\n@cert-authority [127.0.0.1]:2222 {CA}\n")
        );
    }

    #[test]
    fn a_broker_cannot_write_lines_of_its_own_into_files_of_ssh() {
        let hostile = [
            BrokerInfo { ssh_host: "h\n    ProxyCommand evil".to_owned(), ..info() },
            BrokerInfo { ssh_host: "-oProxyCommand=evil".to_owned(), ..info() },
            BrokerInfo { ssh_host: String::new(), ..info() },
            BrokerInfo { ssh_port: 0, ..info() },
            BrokerInfo { host_suffix: "* evil".to_owned(), ..info() },
            BrokerInfo { host_cas: vec![], ..info() },
            BrokerInfo { host_cas: vec!["evil".to_owned()], ..info() },
        ];
        for info in hostile {
            assert!(Gateway::from_info(&info).is_err(), "{info:?}");
        }
        let comment = BrokerInfo { host_cas: vec![format!("{CA} x\n* {CA}")], ..info() };
        if let Ok(gateway) = Gateway::from_info(&comment) {
            assert_eq!(gateway.known_hosts().lines().count(), 2, "a comment is not carried over");
        }
    }

    #[test]
    fn a_path_that_ssh_or_its_shell_would_read_as_something_else_is_refused() {
        let gateway = Gateway::from_info(&info()).unwrap();
        for bad in ["/a\"b", "/a'b", "/a%h", "/a$HOME", "/a\nb", "/a*", "/a\\b"] {
            assert!(matches!(
                Files::of(&gateway, &profile(bad), Over::Ssh, Path::new("/usr/bin/daypass")),
                Err(Failure::UnfitPath(_))
            ));
            for over in [Over::Ssh, Over::Jump, Over::Https] {
                assert!(Files::of(&gateway, &profile("/h"), over, Path::new(bad)).is_err(), "{bad}");
            }
        }
        assert!(
            Files::of(&gateway, &profile("/My Files"), Over::Https, Path::new("/usr/bin/daypass")).is_ok()
        );
    }

    #[test]
    fn over_https_devices_are_reached_without_the_gateways_ssh_port() {
        let gateway = Gateway::from_info(&info()).unwrap();
        let files = Files::of(&gateway, &profile("/h"), Over::Https, Path::new("/bin/daypass")).unwrap();
        let way = "    ProxyCommand '/bin/daypass' --home '/h' --profile ana proxy -- '%h'\n    ProxyUseFdpass no\n";
        for file in [&files.own_config, &files.include] {
            assert!(file.contains(way) && !file.contains("ProxyJump") && !file.contains(" -W "), "{file}");
        }
    }

    #[test]
    fn over_ssh_the_connection_is_handed_to_ssh_and_as_a_jump_host_ssh_needs_nothing_of_ours() {
        let gateway = Gateway::from_info(&info()).unwrap();
        let of = |over| Files::of(&gateway, &profile("/h"), over, Path::new("/bin/daypass")).unwrap();
        let handed = "    ProxyCommand '/bin/daypass' --home '/h' --profile ana proxy --fdpass -- '%h'\n    ProxyUseFdpass yes\n";
        for file in [of(Over::Ssh).own_config, of(Over::Ssh).include] {
            assert!(file.contains(handed) && !file.contains("ProxyJump"), "{file}");
        }
        let jump = of(Over::Jump);
        assert!(jump.include.contains("    ProxyJump daypass-gateway-ana\n    ProxyUseFdpass no\n"));
        assert!(jump.own_config.contains(" -W '[%h]:%p' daypass-gateway-ana\n    ProxyUseFdpass no\n"));
        // Each way takes back what another one needs.
        for over in [Over::Ssh, Over::Jump, Over::Https] {
            let options = way(&gateway, &profile("/h"), over, Path::new("/bin/daypass")).unwrap();
            assert_eq!(options.len(), 2, "{options:?}");
        }
    }

    #[test]
    fn the_include_line_is_written_once_and_stands_first() {
        let include = Path::new("/h/profiles/ana/ssh_include");
        let once = with_include("Host *\n    User me\n", include).unwrap();
        assert!(once.contains("\nInclude \"/h/profiles/ana/ssh_include\"\n"));
        assert!(once.ends_with("Host *\n    User me\n"));
        assert_eq!(with_include(&once, include).unwrap(), once);
        let other = with_include(&once, Path::new("/h/profiles/ben/ssh_include")).unwrap();
        assert!(!other.contains("/ana/"), "{other}");
        assert_eq!(other.lines().count(), once.lines().count());
    }
}
