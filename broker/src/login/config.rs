//! What an operator says about signing in: the `[login]` section.

use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// The environment variable that holds the client secret when no file does.
pub const CLIENT_SECRET_VARIABLE: &str = "DAYPASS_OIDC_CLIENT_SECRET";

/// As it stands in the configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginConfig {
    /// Exactly as the provider spells it in its ID tokens.
    pub issuer: String,
    pub client_id: String,
    /// A file with the client secret, and nothing else, in it. Without it the environment variable
    /// `DAYPASS_OIDC_CLIENT_SECRET` is read; without both, this is a public client.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// Asked for besides `openid`.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// The claim that lists a person's teams: a name, or a path with dots (`realm_access.roles`).
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
    /// PEM file of CAs to trust for the provider's HTTPS, besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Values of `amr` or `acr` that mean more than one factor was used.
    #[serde(default = "mfa_values")]
    pub mfa_values: Vec<String>,
    /// Ask the provider to sign a person in again when they last did so longer ago than this.
    #[serde(default)]
    pub max_age_s: Option<u64>,
    /// How long a browser stays signed in.
    #[serde(default = "half_a_day")]
    pub browser_lifetime_s: u64,
    /// How long a command line stays signed in.
    #[serde(default = "half_a_day")]
    pub cli_lifetime_s: u64,
}

fn scopes() -> Vec<String> {
    ["profile", "email"].map(str::to_owned).to_vec()
}
fn groups_claim() -> String {
    "groups".to_owned()
}
fn mfa_values() -> Vec<String> {
    vec!["mfa".to_owned()]
}
const fn half_a_day() -> u64 {
    12 * 3600
}

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("login.{key}: {reason}")]
pub struct ConfigFault {
    pub key: &'static str,
    pub reason: String,
}

/// A secret that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The checked form.
#[derive(Clone, Debug)]
pub struct LoginSettings {
    pub issuer: Url,
    /// The issuer letter by letter: `Url` may add a slash, and the comparison is exact.
    pub issuer_text: String,
    pub client_id: String,
    pub client_secret: Option<Secret>,
    pub scopes: Vec<String>,
    pub groups_claim: String,
    /// PEM.
    pub extra_cas: Option<Vec<u8>>,
    pub mfa_values: Vec<String>,
    pub max_age: Option<Duration>,
    pub browser_lifetime: Duration,
    pub cli_lifetime: Duration,
}

impl LoginConfig {
    /// Settings for a provider, with the defaults for everything else.
    pub fn of(issuer: &str, client_id: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            client_id: client_id.to_owned(),
            client_secret_file: None,
            scopes: scopes(),
            groups_claim: groups_claim(),
            ca_file: None,
            mfa_values: mfa_values(),
            max_age_s: None,
            browser_lifetime_s: half_a_day(),
            cli_lifetime_s: half_a_day(),
        }
    }

    /// Reads what the configuration points to and reports every mistake in it. `env` looks a variable up.
    pub fn check(&self, env: impl Fn(&str) -> Option<String>) -> Result<LoginSettings, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let mut fault = |key, reason: String| faults.push(ConfigFault { key, reason });

        let issuer = match Url::parse(&self.issuer) {
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                fault("issuer", "has a query or a fragment; give the issuer alone".to_owned());
                None
            }
            Ok(url) if url.scheme() == "https" || is_loopback_http(&url) => Some(url),
            Ok(_) => {
                fault("issuer", "must start with https:// (http:// only on 127.0.0.1)".to_owned());
                None
            }
            Err(error) => {
                fault("issuer", format!("is not a URL: {error}"));
                None
            }
        };
        if self.client_id.trim().is_empty() {
            fault("client_id", "is empty".to_owned());
        }
        let client_secret = match &self.client_secret_file {
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => {
                    fault("client_secret_file", format!("{} is empty", path.display()));
                    None
                }
                Ok(text) => Some(Secret::new(text.trim())),
                Err(error) => {
                    fault("client_secret_file", format!("{} cannot be read: {error}", path.display()));
                    None
                }
            },
            None => env(CLIENT_SECRET_VARIABLE).filter(|text| !text.is_empty()).map(Secret::new),
        };
        let extra_cas = self.ca_file.as_ref().and_then(|path| match std::fs::read(path) {
            Ok(pem) => match reqwest::Certificate::from_pem_bundle(&pem) {
                Ok(cas) if !cas.is_empty() => Some(pem),
                _ => {
                    fault("ca_file", format!("{} has no PEM certificate in it", path.display()));
                    None
                }
            },
            Err(error) => {
                fault("ca_file", format!("{} cannot be read: {error}", path.display()));
                None
            }
        });
        if self.groups_claim.is_empty() {
            fault("groups_claim", "is empty".to_owned());
        }
        for (key, seconds) in
            [("browser_lifetime_s", self.browser_lifetime_s), ("cli_lifetime_s", self.cli_lifetime_s)]
        {
            if !(60..=30 * 86_400).contains(&seconds) {
                fault(key, format!("{seconds} is not between 60 and 2592000 (30 days)"));
            }
        }
        match issuer {
            Some(issuer) if faults.is_empty() => Ok(LoginSettings {
                issuer,
                issuer_text: self.issuer.clone(),
                client_id: self.client_id.clone(),
                client_secret,
                scopes: self.scopes.clone(),
                groups_claim: self.groups_claim.clone(),
                extra_cas,
                mfa_values: self.mfa_values.clone(),
                max_age: self.max_age_s.map(Duration::from_secs),
                browser_lifetime: Duration::from_secs(self.browser_lifetime_s),
                cli_lifetime: Duration::from_secs(self.cli_lifetime_s),
            }),
            _ => Err(faults),
        }
    }
}

/// Plain HTTP is for a provider on this very machine.
pub(super) fn is_loopback_http(url: &Url) -> bool {
    url.scheme() == "http"
        && match url.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(_)) | None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once_with_its_key() {
        let mut config = LoginConfig::of("http://idp.example.com", " ");
        config.client_secret_file = Some("/nonexistent/secret".into());
        config.ca_file = Some("/nonexistent/ca.pem".into());
        config.browser_lifetime_s = 1;
        let keys: Vec<_> = config.check(|_| None).unwrap_err().into_iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["issuer", "client_id", "client_secret_file", "ca_file", "browser_lifetime_s"]);
    }

    #[test]
    fn plain_http_is_accepted_only_from_this_machine_by_number() {
        for (issuer, good) in [
            ("https://idp.example.com/realms/x", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("ftp://127.0.0.1", false),
            ("https://idp.example.com/?a=b", false),
        ] {
            assert_eq!(LoginConfig::of(issuer, "daypass").check(|_| None).is_ok(), good, "{issuer}");
        }
    }

    #[test]
    fn a_client_secret_does_not_print() {
        let settings = LoginConfig::of("https://idp.example.com", "daypass")
            .check(|name| (name == CLIENT_SECRET_VARIABLE).then(|| "hunter2".to_owned()))
            .unwrap();
        assert_eq!(settings.client_secret.as_ref().map(Secret::reveal), Some("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
