//! Talking to the broker: one place that sends, authenticates, bounds and reads.

pub mod pages;
pub mod sign_in;
pub mod tls;

use crate::clock;
use crate::failure::Failure;
use crate::profile::tokens::Tokens;
use crate::profile::{Config, Profile, file};
use crate::ui::words;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daypass_protocol::api::{BrokerInfo, Problem, TokenAnswer, TokenError};
use reqwest::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Upgraded};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tls::Trust;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Most bytes of one JSON answer.
const MAX_ANSWER: usize = 16 << 20;
/// How the HTTP library begins what it says of a proxy's answer to CONNECT; it has no type for it.
const TUNNEL_ERROR: &str = "tunnel error: ";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence that ends a request. Longer than the broker's longest poll.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// A broker, as one profile sees it.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    profile: Profile,
}

/// An address of a broker: https, a host, perhaps a port, and nothing else.
pub fn broker_url(text: &str) -> Result<String, Failure> {
    let bad = |why| Failure::BadBrokerUrl { url: text.to_owned(), why };
    let url = url::Url::parse(text.trim()).map_err(|_| bad(words::URL_UNREADABLE))?;
    if url.scheme() != "https" {
        return Err(bad(words::URL_NOT_HTTPS));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.path() != "/"
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(bad(words::URL_TOO_MUCH));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad(words::URL_UNREADABLE));
    }
    Ok(url.origin().ascii_serialization())
}

impl Client {
    /// The broker that the profile signed in to.
    pub fn of(profile: &Profile) -> Result<(Self, Config), Failure> {
        let config = profile.config()?.ok_or(Failure::NoBroker)?;
        let trust = stored_trust(profile, &config)?;
        Ok((Self::new(profile, &config.broker, &trust)?, config))
    }

    pub fn new(profile: &Profile, broker: &str, trust: &Trust) -> Result<Self, Failure> {
        let base = broker_url(broker)?;
        let builder = reqwest::Client::builder()
            .user_agent(concat!("daypass/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            // A WebSocket is an upgrade of HTTP/1.1, and nothing here is asked for in numbers.
            .http1_only()
            // The API never redirects, and a token must not follow one.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        let http = tls::trusting(builder, trust)?
            .build()
            .map_err(|e| Failure::BadAnswer { what: "TLS", why: causes(&e) })?;
        Ok(Self { http, base, profile: profile.clone() })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    fn unsent(&self, error: &reqwest::Error) -> Failure {
        let url = self.base.clone();
        match tls::certificate_error(error) {
            Some(why) => Failure::Untrusted { url, why: why.to_string() },
            None => {
                let why = causes(error);
                match why.strip_prefix(TUNNEL_ERROR) {
                    Some(why) => Failure::Proxy { url, why: why.to_owned() },
                    None => Failure::Unreachable { url, why },
                }
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// The address of a path of the broker's; each part is one, whatever is in it.
    fn url(&self, path: &[&str]) -> Result<url::Url, Failure> {
        let bad = |why| Failure::BadBrokerUrl { url: self.base.clone(), why };
        let mut url = url::Url::parse(&self.base).map_err(|_| bad(words::URL_UNREADABLE))?;
        url.path_segments_mut().map_err(|()| bad(words::URL_UNREADABLE))?.clear().extend(path);
        Ok(url)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|e| self.unsent(&e))
    }

    /// The whole body, if it is of a size that an answer can have.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unsent(&e))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Failure::BadAnswer { what: words::ANSWER, why: words::TOO_LARGE.to_owned() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let body = self.body(self.successful(response).await?).await?;
        serde_json::from_slice(&body)
            .map_err(|e| Failure::BadAnswer { what: words::ANSWER, why: e.to_string() })
    }

    async fn successful(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        // A switch of protocols is an answer to one question only, which looks for it.
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with("application/problem+json"));
        let body = self.body(response).await?;
        if is_problem && let Ok(mut problem) = serde_json::from_slice::<Problem>(&body) {
            // The status line is what decides; RFC 9457 section 3.1.3 calls the member advisory.
            problem.status = status.as_u16();
            return Err(Failure::Problem(Box::new(problem)));
        }
        Err(Failure::BadAnswer { what: words::ANSWER, why: words::status(status.as_u16()) })
    }

    /// Sends with the access token; once more with a new one if the broker does not take the first.
    async fn authorised(&self, make: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        let token = self.access_token(None).await?;
        let response = self.send(make().bearer_auth(&token)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.successful(response).await;
        }
        let token = self.access_token(Some(&token)).await?;
        let response = self.send(make().bearer_auth(&token)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(Failure::NotSignedIn);
        }
        self.successful(response).await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        let response = self.authorised(|| self.request(Method::GET, path).query(query)).await?;
        self.read(response).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let response = self.authorised(|| self.request(Method::POST, path).json(body)).await?;
        self.read(response).await
    }

    /// Nothing is sent but the path, whose parts may be anything.
    pub async fn post_to<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        let url = self.url(path)?;
        let response = self.authorised(|| self.http.post(url.clone())).await?;
        self.read(response).await
    }

    pub async fn post_nothing<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let response = self.authorised(|| self.request(Method::POST, path)).await?;
        self.read(response).await
    }

    /// A body that is read as it comes.
    pub async fn stream(&self, path: &str) -> Result<Body<'_>, Failure> {
        let response = self.authorised(|| self.request(Method::GET, path)).await?;
        Ok(Body { client: self, response })
    }

    /// Opens a WebSocket (RFC 6455 section 4.1) as everything else is asked for: by the same proxies, trust and
    /// tokens. What comes back is the connection behind the handshake.
    pub async fn websocket(&self, path: &[&str], protocol: &'static str) -> Result<Upgraded, Failure> {
        let bad = |why: &str| Failure::BadAnswer { what: words::ANSWER, why: why.to_owned() };
        let url = self.url(path)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| Failure::Random)?;
        let key = STANDARD.encode(random);
        let response = self
            .authorised(|| {
                self.http
                    .get(url.clone())
                    .header(CONNECTION, "upgrade")
                    .header(UPGRADE, "websocket")
                    .header(SEC_WEBSOCKET_VERSION, "13")
                    .header(SEC_WEBSOCKET_KEY, &key)
                    .header(SEC_WEBSOCKET_PROTOCOL, protocol)
            })
            .await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || header(SEC_WEBSOCKET_ACCEPT) != Some(&derive_accept_key(key.as_bytes()))
            || header(SEC_WEBSOCKET_PROTOCOL) != Some(protocol)
        {
            return Err(bad(words::NO_WEBSOCKET));
        }
        response.upgrade().await.map_err(|error| self.unsent(&error))
    }

    /// What anybody may know of this broker.
    pub async fn broker_info(&self) -> Result<BrokerInfo, Failure> {
        let response = self.send(self.request(Method::GET, "/v1/broker")).await?;
        self.read(response).await
    }

    async fn form<T: DeserializeOwned>(&self, path: &str, form: &[(&str, &str)]) -> Result<T, Failure> {
        let response = self.send(self.request(Method::POST, path).form(form)).await?;
        if response.status() == StatusCode::BAD_REQUEST {
            let body = self.body(response).await?;
            return Err(match serde_json::from_slice::<TokenError>(&body) {
                Ok(refused) => {
                    Failure::Token { error: refused.error, description: refused.error_description }
                }
                Err(_) => Failure::BadAnswer { what: words::ANSWER, why: words::status(400) },
            });
        }
        self.read(response).await
    }

    /// RFC 7009.
    pub async fn revoke(&self, refresh_token: &str) -> Result<(), Failure> {
        let response =
            self.send(self.request(Method::POST, "/v1/revoke").form(&[("token", refresh_token)])).await?;
        self.successful(response).await.map(drop)
    }

    /// An access token that is good for now and is not `refused`.
    ///
    /// Refresh tokens rotate, and the broker answers the reuse of an old one by revoking the whole
    /// family (RFC 9700 section 4.14.2). So two processes must never refresh with the same token: who
    /// holds the lock reads the tokens again before deciding that they are stale.
    async fn access_token(&self, refused: Option<&str>) -> Result<String, Failure> {
        let usable =
            |tokens: &Tokens| tokens.is_fresh(clock::now()) && refused != Some(tokens.access_token.as_str());
        let tokens = self.profile.tokens()?.ok_or(Failure::NotSignedIn)?;
        if usable(&tokens) {
            return Ok(tokens.access_token);
        }
        let _lock = self.profile.lock().await?;
        let tokens = self.profile.tokens()?.ok_or(Failure::NotSignedIn)?;
        if usable(&tokens) {
            return Ok(tokens.access_token);
        }
        let form = [("grant_type", "refresh_token"), ("refresh_token", tokens.refresh_token.as_str())];
        match self.form::<TokenAnswer>("/v1/token", &form).await {
            Ok(answer) => {
                let tokens = Tokens::from_answer(answer, clock::now());
                self.profile.write_tokens(&tokens)?;
                Ok(tokens.access_token)
            }
            Err(Failure::Token { error, .. }) if error == "invalid_grant" => {
                self.profile.remove_tokens()?;
                Err(Failure::NotSignedIn)
            }
            Err(other) => Err(other),
        }
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Body<'c> {
    client: &'c Client,
    response: Response,
}

impl Body<'_> {
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let chunk = self.response.chunk().await.map_err(|e| self.client.unsent(&e))?;
        Ok(chunk.map(|bytes| bytes.to_vec()))
    }
}

pub fn stored_trust(profile: &Profile, config: &Config) -> Result<Trust, Failure> {
    if let Some(pin) = config.fingerprint {
        return Ok(Trust::Certificate(pin));
    }
    if config.own_ca {
        let path = profile.path(CA_FILE);
        let pem =
            file::read(&path)?.ok_or_else(|| Failure::Corrupt { path, why: words::CA_MISSING.to_owned() })?;
        return Ok(Trust::Authority(pem.into_bytes()));
    }
    Ok(Trust::System)
}

/// Name of the copied authority within a profile.
pub const CA_FILE: &str = "broker-ca.pem";

/// The innermost cause: what a person can do something about.
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_an_https_origin_and_nothing_else() {
        assert_eq!(broker_url("https://Broker.example.com/").unwrap(), "https://broker.example.com");
        assert_eq!(broker_url("https://[::1]:8443").unwrap(), "https://[::1]:8443");
        for bad in [
            "http://broker.example.com",
            "broker.example.com",
            "https://",
            "https://a:b@broker.example.com",
            "https://broker.example.com/path",
            "https://broker.example.com/?q",
            "file:///etc/passwd",
        ] {
            assert!(matches!(broker_url(bad), Err(Failure::BadBrokerUrl { .. })), "{bad}");
        }
    }
}
