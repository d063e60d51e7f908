//! The API's description: whole, consistent, and the same as the one that the console is built from.

use crate::world::{World, answer};
use daypass_broker::http::router::openapi;
use serde_json::Value;
use std::collections::BTreeSet;

fn api() -> Value {
    serde_json::to_value(openapi()).unwrap()
}

/// Every object in the description, with where it stands.
fn walk<'a>(at: &str, value: &'a Value, see: &mut dyn FnMut(&str, &'a Value)) {
    see(at, value);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                walk(&format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), value, see);
            }
        }
        Value::Array(items) => {
            for (nth, value) in items.iter().enumerate() {
                walk(&format!("{at}/{nth}"), value, see);
            }
        }
        _ => {}
    }
}

#[test]
fn nothing_in_the_description_points_nowhere() {
    let api = api();
    assert_eq!(api["openapi"], "3.1.0");
    let mut references = 0;
    walk("#", &api, &mut |at, value| {
        if let Some(to) = value.get("$ref").and_then(Value::as_str) {
            references += 1;
            let there = to.strip_prefix('#').and_then(|pointer| api.pointer(pointer));
            assert!(there.is_some(), "{at} points to {to}, which is not there");
        }
    });
    assert!(references > 50, "{references}");
}

#[test]
fn every_operation_is_described_whole() {
    let api = api();
    let schemes = api["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes["cookie"]["name"], "__Host-daypass");
    assert_eq!(schemes["access_token"]["scheme"], "bearer");
    assert_eq!(api["security"].as_array().unwrap().len(), 2);
    let mut ids = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{name} has no summary");
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no operationId"));
            assert!(ids.insert(id), "two operations are called {id}");
            for requirement in operation["security"].as_array().into_iter().flatten() {
                for scheme in requirement.as_object().unwrap().keys() {
                    assert!(schemes.contains_key(scheme), "{name} needs {scheme}, which is not described");
                }
            }
            let declared: BTreeSet<_> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            let named: BTreeSet<_> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(declared, named, "{name}: parameters of the path");
            for (status, response) in operation["responses"].as_object().unwrap() {
                // OpenAPI 3.1, section 4.8.17: REQUIRED.
                assert!(response["description"].is_string(), "{name} {status} has no description");
                let is_error = status.starts_with('4') || status.starts_with('5');
                if is_error && path.starts_with("/v1/") {
                    assert!(response["content"].is_object(), "{name} {status} does not say what it answers");
                }
            }
        }
    }
}

#[test]
fn the_description_in_the_repository_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/web/openapi.json");
    let text = std::fs::read_to_string(path).unwrap();
    let there: Value = serde_json::from_str(&text).unwrap();
    assert!(
        there == api(),
        "broker/web/openapi.json is not what the API is. Run:\n  \
         cargo run -p daypass-broker -- openapi > broker/web/openapi.json && (cd broker/web && npm run api)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_serves_its_own_description() {
    let world = World::new().await;
    let served = answer(world.request("GET", "/v1/openapi.json")).await;
    assert_eq!(served.header("content-type"), "application/json");
    assert_eq!(served.json::<Value>(), api());
}
