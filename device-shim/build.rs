//! Puts the time of the build into the program: the lowest time a device ever believes.

#![allow(clippy::disallowed_methods, reason = "the build machine's clock is the one meant")]

use std::time::SystemTime;

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=src");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let at = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
    println!("cargo::rustc-env=DAYPASS_BUILD_TIME={at}");
}
