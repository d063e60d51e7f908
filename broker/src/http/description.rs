//! What the OpenAPI description says of the API as a whole: how callers prove who they are, and how
//! errors look.

use axum::http::StatusCode;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, OpenApi, PathItem, Ref, RefOr, path::Operation};
use utoipa::{Modify, OpenApi as _};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Daypass",
        description = "Just-in-time SSH access for deployed products. Times are milliseconds since 1970 UTC, durations are seconds; errors are RFC 9457 problem details."
    ),
    components(schemas(daypass_protocol::api::Problem)),
    modifiers(&Security)
)]
struct ApiDoc;

/// Every operation takes one of the two, unless it says otherwise: one that forgets to say anything is
/// described as closed.
struct Security;

impl Modify for Security {
    fn modify(&self, api: &mut OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let cookie = ApiKey::Cookie(ApiKeyValue::with_description(
            "__Host-daypass",
            "A browser session. POST also needs the header x-csrf-token, equal to the cookie daypass-csrf.",
        ));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("access_token", SecurityScheme::Http(bearer));
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
        let one_of = ["access_token", "cookie"];
        api.security = Some(one_of.map(|name| SecurityRequirement::new(name, Vec::<String>::new())).to_vec());
    }
}

/// The description without any operation.
pub fn base() -> OpenApi {
    ApiDoc::openapi()
}

/// Says of each operation what is the same for all.
pub fn finish(api: &mut OpenApi) {
    for (path, item) in &mut api.paths.paths {
        // Browsers navigate there, and are shown pages.
        let shows_pages = path.starts_with("/login");
        for operation in operations(item) {
            describe_responses(operation, shows_pages);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn describe_responses(operation: &mut Operation, shows_pages: bool) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let status = status.parse::<StatusCode>().ok();
        if response.description.is_empty() {
            // OpenAPI 3.1 wants one.
            status
                .and_then(|status| status.canonical_reason())
                .unwrap_or("Error")
                .clone_into(&mut response.description);
        }
        let is_error = status.is_some_and(|status| status.is_client_error() || status.is_server_error());
        // What has a body already is an error of OAuth 2, which has a shape of its own.
        if is_error && !shows_pages && response.content.is_empty() {
            let problem = Content::new(Some(Ref::from_schema_name("Problem")));
            response.content.insert("application/problem+json".to_owned(), RefOr::T(problem));
        }
    }
}
