//! Puts the time of the build into the program: the lowest time a device ever believes.

#![allow(clippy::disallowed_methods, reason = "the build machine's clock is the one meant")]

use std::time::SystemTime;

fn main() {
    link_for_size();
    if target_is("ENV", "musl") && target_is("ARCH", "x86_64") {
        // src/memmove.rs
        println!("cargo:rustc-link-arg-bins=-Wl,--wrap=memmove");
    }
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=src");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let at = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
    println!("cargo::rustc-env=DAYPASS_BUILD_TIME={at}");
}

/// The device's program is held to a size. Only in profile `shim`, the one that optimises for size and aborts on panic.
fn link_for_size() {
    println!("cargo:rerun-if-changed=sections.ld");
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level == "z") && target_is("ENV", "musl") {
        // All its relocations are relative; packed to a bitmap they take a hundredth of the room.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        // The toolchain's own linker folds functions whose code is the same, which generics leave many of.
        if let Some(folder) = toolchains_linker() {
            println!("cargo:rustc-link-arg-bins=-B{folder}");
            println!("cargo:rustc-link-arg-bins=-fuse-ld=lld");
            println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
        }
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{here}/sections.ld");
    }
}

fn target_is(what: &str, value: &str) -> bool {
    std::env::var(format!("CARGO_CFG_TARGET_{what}")).is_ok_and(|found| found == value)
}

/// Where rustup's toolchain has lld under the name that a C compiler looks for.
fn toolchains_linker() -> Option<String> {
    let rustc = std::env::var_os("RUSTC")?;
    let sysroot = std::process::Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(sysroot.stdout).ok()?;
    let host = std::env::var("HOST").ok()?;
    let folder = format!("{}/lib/rustlib/{host}/bin/gcc-ld", sysroot.trim());
    std::path::Path::new(&folder).join("ld.lld").exists().then_some(folder)
}
