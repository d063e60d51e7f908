//! Who calls: the extractors that handlers take.

use super::{Login, VerifiedPerson};
use crate::http::Problem;
use crate::random;
use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, header};
use axum_extra::extract::CookieJar;
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq as _;

/// `__Host-`: set by this host, over HTTPS, for all of it, and by nobody else (RFC 6265bis 4.1.3.2).
pub(super) const SESSION_COOKIE: &str = "__Host-daypass";
/// Readable by the console's scripts, which send it back as [`CSRF_HEADER`].
pub(super) const CSRF_COOKIE: &str = "daypass-csrf";
const CSRF_HEADER: &str = "x-csrf-token";

/// The person who calls, by access token or by browser session.
#[derive(Clone, Debug)]
pub struct Caller(pub VerifiedPerson);

/// The person who calls, by access token only: any page can make a browser open a WebSocket, and the
/// browser's cookies may go with it.
#[derive(Clone, Debug)]
pub struct TokenCaller(pub VerifiedPerson);

/// As [`Caller`], for an answer that lasts: whether the proof still holds can be asked again.
#[derive(Clone, Debug)]
pub struct LastingCaller {
    pub person: VerifiedPerson,
    proof: Parts,
}

impl LastingCaller {
    /// The person of the same proof, as of now; the token may have ended, or the sign-in.
    pub async fn again<S: Send + Sync>(&self, state: &S) -> Result<VerifiedPerson, Problem>
    where
        Login: FromRef<S>,
    {
        let mut proof = self.proof.clone();
        Ok(Caller::from_request_parts(&mut proof, state).await?.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LastingCaller
where
    Login: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Caller(person) = Caller::from_request_parts(parts, state).await?;
        // What the server put beside the request, its connection among it, is not kept.
        let mut proof = Request::new(()).into_parts().0;
        proof.method = parts.method.clone();
        for name in [header::AUTHORIZATION, header::COOKIE] {
            for value in parts.headers.get_all(&name) {
                proof.headers.append(&name, value.clone());
            }
        }
        Ok(Self { person, proof })
    }
}

/// The person who calls, by browser session only: for what a stolen access token must not do.
#[derive(Clone, Debug)]
pub struct BrowserCaller {
    pub person: VerifiedPerson,
    pub(super) token: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller
where
    Login: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // A header that is there decides: a wrong token is not saved by a cookie beside it.
        if !parts.headers.contains_key(header::AUTHORIZATION) {
            let browser = BrowserCaller::from_request_parts(parts, state).await?;
            return Ok(Self(browser.person));
        }
        let TokenCaller(person) = TokenCaller::from_request_parts(parts, state).await?;
        Ok(Self(person))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TokenCaller
where
    Login: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let authorization = parts
            .headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| Problem::unauthenticated("There is no access token."))?;
        let token = authorization
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| Problem::unauthenticated("The Authorization header has no bearer token."))?;
        Ok(Self(Login::from_ref(state).from_access_token(token).await?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for BrowserCaller
where
    Login: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let login = Login::from_ref(state);
        let token = CookieJar::from_headers(&parts.headers)
            .get(SESSION_COOKIE)
            .map(|cookie| cookie.value().to_owned())
            .ok_or_else(|| Problem::unauthenticated("Nobody is signed in."))?;
        let (person, csrf_hash) = login.browser_session(&token).await?;
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            meant(&parts.headers, &csrf_hash, &login.origin())?;
        }
        Ok(Self { person, token })
    }
}

/// A browser sends cookies along with requests that another site made up. This one comes from our own
/// pages: it carries the token that only they can read, and the browser says nothing to the contrary.
fn meant(headers: &HeaderMap, csrf_hash: &str, origin: &str) -> Result<(), Problem> {
    let refused = |why: &'static str| {
        tracing::warn!(why, "a request with a session cookie was not made by our own pages");
        Err(Problem::forbidden("csrf", "This request does not come from the Daypass console.")
            .hint("Reload the page and try again."))
    };
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let Some(token) = text(CSRF_HEADER) else {
        return refused("no x-csrf-token");
    };
    // Hashes are compared, in constant time: neither the length nor the place of a difference shows.
    if !bool::from(random::hash(token).as_bytes().ct_eq(csrf_hash.as_bytes())) {
        return refused("a wrong x-csrf-token");
    }
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin") {
        return refused("sec-fetch-site is another site");
    }
    if text("origin").is_some_and(|from| from != origin) {
        return refused("origin is another origin");
    }
    Ok(())
}

/// Where a request comes from. The server puts [`ConnectInfo`] into each request.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Without an address there would be no limit: that is a mistake of ours, not a free pass.
        let ConnectInfo(address) = parts.extensions.get::<ConnectInfo<SocketAddr>>().ok_or_else(|| {
            Problem::unavailable("serving a request", &"the server did not say where it comes from")
        })?;
        Ok(Self(address.ip().to_canonical()))
    }
}
