//! `cargo xtask setup`: brings what building the kernel programs, running a cluster and rendering the chart needs, or says in one line what is missing.
//! Only `cargo xtask ebpf`, `cargo xtask cluster` and CI need it: everything else uses the kept object.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{chart, cluster, h2spec, run};

const LINKER_VERSION: &str = "0.10.3";
/// Debian's package of the pinned compiler's library sources, for machines on which rustup cannot download.
const PACKAGE: &str = "rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb";
const PACKAGE_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
const POOL: &str = "pool/main/r/rustc";
const COMPILER: &str = "1.95.0";

/// Installs what is missing.
pub fn run() -> Result<()> {
    run::need(&["cargo", "rustc"])?;
    let mut missing = Vec::new();
    if let Err(error) = library_sources() {
        missing.push(format!("rust-src of {COMPILER} ({error:#})"));
    }
    if let Err(error) = linker() {
        missing.push(format!("bpf-linker {LINKER_VERSION} ({error:#})"));
    }
    ensure!(missing.is_empty(), "missing: {}", missing.join("; "));
    println!("ready: rust-src and bpf-linker {LINKER_VERSION} for rustc {COMPILER}");
    // Built here and not by the first test that wants them, which would take minutes of both CPUs beside other tests.
    match packages(&cluster::NEEDED).and_then(|()| cluster::build()) {
        Ok(_) => println!("ready: what `cargo xtask cluster` starts"),
        // Without them all but the cluster and its tests works, and those say that they are skipped.
        Err(error) => println!("no cluster on this machine: {error:#}"),
    }
    match chart::Engine::install() {
        Ok(_) => println!("ready: Helm's engine"),
        // The chart's tests say that they are skipped.
        Err(error) => println!("no Helm on this machine: {error:#}"),
    }
    match h2spec::install() {
        Ok(_) => println!("ready: h2spec"),
        // The test that starts it says that it is skipped.
        Err(error) => println!("no h2spec on this machine: {error:#}"),
    }
    Ok(())
}

/// Installs the packages of programs that are missing, where there is Debian's package manager and the right to use it.
fn packages(programs: &[&str]) -> Result<()> {
    let packages = run::packages(programs);
    if packages.is_empty() || run::need_root("setup").is_err() || run::find("apt-get").is_none() {
        return Ok(());
    }
    println!("installing {}", packages.join(", "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        let output =
            command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).output().context("start apt-get")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "apt-get {}: {}",
            arguments[0],
            said.trim().lines().last().unwrap_or("failed")
        );
        Ok(())
    };
    apt(&["update", "--quiet"])?;
    apt(&[&["install", "--yes", "--quiet", "--no-install-recommends"], &packages[..]].concat())
}

/// Fails with one line if something is missing, without installing it.
pub fn check() -> Result<()> {
    run::need(&["cargo", "rustc"])?;
    let mut missing = Vec::new();
    if !has_library_sources(&sysroot()?) {
        missing.push("rust-src");
    }
    if !has_linker() {
        missing.push("bpf-linker");
    }
    ensure!(missing.is_empty(), "missing: {}; run `cargo xtask setup`", missing.join(", "));
    Ok(())
}

fn has_library_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

fn has_linker() -> bool {
    command("bpf-linker", &["--version"]).is_ok_and(|version| version.contains(LINKER_VERSION))
}

fn linker() -> Result<()> {
    if has_linker() {
        return Ok(());
    }
    let status = run::cargo()?
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo install failed");
    Ok(())
}

fn library_sources() -> Result<()> {
    let version = command("rustc", &["--version"])?;
    ensure!(version.contains(COMPILER), "rustc is {}", version.trim());
    let sysroot = sysroot()?;
    if has_library_sources(&sysroot) {
        return Ok(());
    }
    let rustup = Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", COMPILER]).output();
    if rustup.is_ok_and(|output| output.status.success()) && has_library_sources(&sysroot) {
        return Ok(());
    }
    from_debian(&sysroot).context("rustup could not add it, and neither could Debian's package")
}

fn from_debian(sysroot: &Path) -> Result<()> {
    let folder = env::temp_dir().join(format!("undermesh-rust-src-{}", std::process::id()));
    fs::create_dir_all(&folder).context("make a scratch folder")?;
    let result = download(&folder).and_then(|package| unpack(&package, &folder, sysroot));
    let _ = fs::remove_dir_all(&folder);
    result?;
    ensure!(has_library_sources(sysroot), "the package holds no library sources");
    Ok(())
}

/// From the mirrors that apt is configured with, with apt's own client (its proxies and certificates), verified by hash.
fn download(folder: &Path) -> Result<PathBuf> {
    let package = folder.join(PACKAGE);
    let mut tried = Vec::new();
    for mirror in mirrors() {
        let url =
            format!("{}/{POOL}/{}", mirror.trim_end_matches('/'), PACKAGE.replace('~', "%7e").replace('+', "%2b"));
        let helper = command(
            "/usr/lib/apt/apt-helper",
            &["download-file", &url, &package.to_string_lossy(), &format!("SHA256:{PACKAGE_SHA256}")],
        );
        let fetched = helper.or_else(|_| command("curl", &["-fsSL", "-o", &package.to_string_lossy(), &url]));
        match fetched.and_then(|_| verify(&package)) {
            Ok(()) => return Ok(package),
            Err(error) => tried.push(format!("{url}: {error:#}")),
        }
    }
    bail!("no mirror has it: {}", tried.join("; "))
}

fn verify(package: &Path) -> Result<()> {
    let sum = command("sha256sum", &[&package.to_string_lossy()])?;
    ensure!(sum.starts_with(PACKAGE_SHA256), "it has another sha256 than expected");
    Ok(())
}

/// Debian mirrors of apt's sources, then the public one.
fn mirrors() -> Vec<String> {
    let mut mirrors = Vec::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    for text in files.iter().filter_map(|file| fs::read_to_string(file).ok()) {
        for word in text.split_whitespace() {
            let is_debian = word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian");
            if is_debian && !mirrors.iter().any(|known| known == word) {
                mirrors.push(word.to_owned());
            }
        }
    }
    mirrors.push("https://deb.debian.org/debian".to_owned());
    mirrors
}

fn unpack(package: &Path, folder: &Path, sysroot: &Path) -> Result<()> {
    let tree = folder.join("tree");
    command("dpkg-deb", &["-x", &package.to_string_lossy(), &tree.to_string_lossy()])?;
    let library = tree.join(format!("usr/src/rustc-{COMPILER}/library"));
    let target = sysroot.join("lib/rustlib/src/rust");
    fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    command("cp", &["-a", &library.to_string_lossy(), &target.to_string_lossy()])?;
    Ok(())
}

/// The folder of the compiler in use.
pub fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(command("rustc", &["--print", "sysroot"])?.trim()))
}

/// Runs a command and returns what it printed.
pub fn command(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim().lines().next().unwrap_or("failed"));
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {program} printed"))
}
