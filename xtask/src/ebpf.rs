//! `cargo xtask ebpf`: builds the kernel programs into the object that is kept in the repository, or checks that the kept one is fresh.
//!
//! The same sources give the same bytes on every machine: compiler, linker and crates are pinned, machine paths are mapped away and
//! DWARF is stripped (BTF stays). Beside the object stands a hash of its sources, so that staleness shows without the toolchain.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    run::cargo,
    setup::{command, sysroot},
};

const OBJECT: &str = "mesh-agent/bpf/undermesh.o";
const SOURCES: &str = "mesh-agent/bpf/undermesh.sources";
/// Set to build the object with the programs' own log beside the kept one, for an agent built with `bpf-log`.
const LOG: &str = "UNDERMESH_EBPF_LOG";
const TARGET: &str = "bpfel-unknown-none";

/// Builds and keeps the object, or, with `check`, fails if the kept one differs from a fresh build.
pub fn run(check: bool) -> Result<()> {
    let root = root()?;
    let sources = hash_sources(&root)?;
    if check {
        let kept = fs::read_to_string(root.join(SOURCES)).with_context(|| format!("read {SOURCES}"))?;
        ensure!(kept.trim() == sources, "{OBJECT} is stale: its sources have changed; run `cargo xtask ebpf`");
        crate::setup::check()?;
        let fresh = build(&root, &[])?;
        let kept = fs::read(root.join(OBJECT)).with_context(|| format!("read {OBJECT}"))?;
        ensure!(
            fresh == kept,
            "{OBJECT} is not what its sources give: {} bytes kept, {} built; run `cargo xtask ebpf`",
            kept.len(),
            fresh.len()
        );
        println!("{OBJECT} is fresh ({} bytes)", kept.len());
        return Ok(());
    }
    crate::setup::check()?;
    if env::var_os(LOG).is_some() {
        let object = target_dir(&root).join("undermesh-log.o");
        fs::write(&object, build(&root, &["--features", "log"])?)
            .with_context(|| format!("write {}", object.display()))?;
        println!("{}: with the programs' log; not kept", object.display());
        return Ok(());
    }
    let fresh = build(&root, &[])?;
    fs::create_dir_all(root.join("mesh-agent/bpf")).context("make the folder of the object")?;
    fs::write(root.join(OBJECT), &fresh).with_context(|| format!("write {OBJECT}"))?;
    fs::write(root.join(SOURCES), format!("{sources}\n")).with_context(|| format!("write {SOURCES}"))?;
    println!("{OBJECT}: {} bytes, sources {sources}", fresh.len());
    Ok(())
}

fn build(root: &Path, features: &[&str]) -> Result<Vec<u8>> {
    let sysroot = sysroot()?;
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let cargo_home = cargo_home.context("find cargo's home")?;
    let target_dir = target_dir(root);
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=/undermesh", root.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        format!("--remap-path-prefix={}=/rust", sysroot.display()),
    ];
    let status = cargo()?
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .args(features)
        .current_dir(root.join("mesh-ebpf"))
        .env("CARGO_TARGET_DIR", &target_dir)
        // build-std is a nightly option; the pinned stable compiler takes it this way.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "building mesh-ebpf failed");
    let built = target_dir.join(TARGET).join("release/undermesh");
    let stripped = target_dir.join("undermesh.o");
    strip(&sysroot, &built, &stripped)?;
    fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
}

fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("ebpf")
}

/// Drops DWARF and the relocations of BTF (the loader needs neither) with the objcopy that comes with rustc.
fn strip(sysroot: &Path, from: &Path, to: &Path) -> Result<()> {
    let host = command("rustc", &["--version", "--verbose"])?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("read rustc's host")?;
    let objcopy = sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy");
    let mut library_path = OsString::from(sysroot.join("lib"));
    if let Some(given) = env::var_os("LD_LIBRARY_PATH") {
        library_path.push(":");
        library_path.push(given);
    }
    let status = Command::new(&objcopy)
        .args(["--strip-debug", "--remove-section=.rel.BTF", "--remove-section=.rel.BTF.ext"])
        .args([from, to])
        .env("LD_LIBRARY_PATH", library_path)
        .status()
        .with_context(|| format!("start {}", objcopy.display()))?;
    ensure!(status.success(), "stripping the object failed");
    Ok(())
}

/// One hash over everything the object is made of.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = vec![
        root.join("mesh-ebpf/Cargo.toml"),
        root.join("mesh-ebpf/Cargo.lock"),
        root.join("mesh-common/Cargo.toml"),
        root.join("rust-toolchain.toml"),
    ];
    collect(&root.join("mesh-ebpf/src"), &mut files)?;
    collect(&root.join("mesh-common/src"), &mut files)?;
    files.sort();
    // FNV-1a with 128 bits: staleness is an accident, not an attack; the bytes themselves are compared by --check.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    };
    for file in files {
        let name = file.strip_prefix(root).context("name a source")?.to_string_lossy().into_owned();
        let text = fs::read(&file).with_context(|| format!("read {name}"))?;
        add(name.as_bytes());
        add(&(text.len() as u64).to_le_bytes());
        add(&text);
    }
    Ok(format!("{hash:032x}"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn root() -> Result<PathBuf> {
    // Cargo says at run time which checkout it runs for; two may share a target folder, and so this binary.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    Ok(manifest.parent().context("find the workspace")?.to_owned())
}
