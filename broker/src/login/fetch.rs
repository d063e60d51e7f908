//! HTTP towards the identity provider: no redirects, bounded in time and size, HTTPS only.

use super::config::{LoginSettings, is_loopback_http};
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use std::error::Error as _;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use url::Url;

/// Far more than a key set of a large provider needs.
const MAX_BODY: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{0} is not HTTPS")]
    Insecure(Url),
    #[error("{0}")]
    Http(String),
    #[error("{url} answered with more than {MAX_BODY} bytes")]
    TooLarge { url: Url },
    #[error("the request cannot be written: {0}")]
    Request(String),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        // reqwest's message alone does not say why: the cause is in its sources.
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        Self::Http(text)
    }
}

#[derive(Clone, Debug)]
pub struct Fetch {
    client: reqwest::Client,
    /// The issuer is on this machine, so its endpoints may be plain HTTP on this machine.
    loopback: bool,
}

impl Fetch {
    pub fn new(settings: &LoginSettings) -> Result<Self, FetchError> {
        // An error means that the process has a provider already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let loopback = is_loopback_http(&settings.issuer);
        let mut builder = reqwest::Client::builder()
            // A redirect would take the code and the client secret elsewhere (RFC 9700 section 4.11).
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(10));
        if loopback {
            builder = builder.no_proxy();
        }
        if let Some(pem) = &settings.extra_cas {
            for ca in reqwest::Certificate::from_pem_bundle(pem)? {
                builder = builder.add_root_certificate(ca);
            }
        }
        Ok(Self { client: builder.build()?, loopback })
    }

    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        let request =
            reqwest::Request::try_from(request).map_err(|error| FetchError::Request(error.to_string()))?;
        let url = request.url().clone();
        if url.scheme() != "https" && !(self.loopback && is_loopback_http(&url)) {
            return Err(FetchError::Insecure(url));
        }
        let mut answer = self.client.execute(request).await?;
        let mut head = openidconnect::http::Response::builder().status(answer.status());
        if let Some(headers) = head.headers_mut() {
            *headers = answer.headers().clone();
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(FetchError::TooLarge { url });
            }
            body.extend_from_slice(&chunk);
        }
        head.body(body).map_err(|error| FetchError::Request(error.to_string()))
    }
}

impl<'c> AsyncHttpClient<'c> for Fetch {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}
