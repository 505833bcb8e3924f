//! How programs are compiled for release, for `bench` and `image`. `mesh-waypoint` is compiled with a profile: which of its paths requests take, as a binary that
//! counts them has seen under load. It is kept beside the crate, as the kernel object is, because making it takes root and a quarter of an hour; functions that have
//! changed since are compiled as if there were none, so an old one costs speed and nothing else. `cargo xtask bench --train` makes it anew.
use crate::run;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled with a profile: crate and binary.
const PROFILED: &str = "mesh-waypoint";
/// The profile, in the format of the pinned compiler.
const PROFILE: &str = "mesh-waypoint/requests.profdata";
/// Separates the flags of `CARGO_ENCODED_RUSTFLAGS`; those in `RUSTFLAGS` cannot have spaces.
const SEPARATOR: &str = "\x1f";

/// Builds programs: all binaries of these crates.
pub fn build(packages: &[&str]) -> Result<()> {
    eprintln!("building release binaries ...");
    let (profiled, others): (Vec<&str>, Vec<&str>) = packages.iter().partition(|package| **package == PROFILED);
    let others = others.iter().flat_map(|package| ["-p", package]);
    run::check(run::cargo()?.args(["build", "--quiet", "--release", "--bins"]).args(others))?;
    // By itself, as images are built: with others it would have their features of shared crates too, and the profile is of other functions then.
    for package in profiled {
        let mut cargo = run::cargo()?;
        cargo.args(["build", "--quiet", "--release", "-p", package, "--bin", package]);
        with_profile(&mut cargo, package)?;
        run::check(&mut cargo)?;
    }
    Ok(())
}

/// Has a release build of `package` heed the profile, if there is one for it.
pub fn with_profile(cargo: &mut Command, package: &str) -> Result<()> {
    let profile = run::root()?.join(PROFILE);
    if package == PROFILED && profile.is_file() {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&format!("-Cprofile-use={}", shown(&profile)?)));
    }
    Ok(())
}

/// One more flag than the user gives.
fn flags(more: &str) -> OsString {
    let encoded = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let plain = std::env::var("RUSTFLAGS").unwrap_or_default();
    join(&encoded, &plain, more).into()
}

fn join(encoded: &str, plain: &str, more: &str) -> String {
    let given: Vec<&str> = match encoded {
        "" => plain.split_whitespace().collect(),
        encoded => encoded.split(SEPARATOR).collect(),
    };
    given.into_iter().chain([more]).collect::<Vec<_>>().join(SEPARATOR)
}

/// Makes the profile anew, with load of so many seconds for each of its parts.
pub fn train(seconds: u32) -> Result<()> {
    let merger = merger()?;
    build(&["mesh-agent", "mesh-control", "mesh-tests"])?;
    let (release, own) = (run::binary_dir("release")?, run::binary_dir("train")?);
    let (bin, counted) = (own.join("release"), own.join("counted"));
    eprintln!("building a mesh-waypoint that counts ...");
    let mut cargo = run::cargo()?;
    cargo.args(["build", "--quiet", "--release", "-p", PROFILED, "--bin", PROFILED]);
    cargo.env("CARGO_TARGET_DIR", &own);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&format!("-Cprofile-generate={}", shown(&counted)?)));
    run::check(&mut cargo)?;
    for binary in ["bench", "bookinfo", "lab", "mesh-agent", "mesh-control"] {
        let link = bin.join(binary);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(release.join(binary), &link).with_context(|| format!("link {}", link.display()))?;
    }
    let _ = std::fs::remove_dir_all(&counted);
    let mut bench = Command::new(release.join("bench"));
    run::check(bench.args(["--train", &seconds.to_string()]).env("UNDERMESH_BIN_DIR", &bin))?;
    let raw = std::fs::read_dir(&counted).context("mesh-waypoint has written nothing of what it counted")?;
    let raw: Vec<PathBuf> = raw.filter_map(|entry| Some(entry.ok()?.path())).collect();
    ensure!(!raw.is_empty(), "mesh-waypoint has written nothing of what it counted");
    let profile = run::root()?.join(PROFILE);
    run::check(Command::new(merger).args(["merge", "--sparse", "-o"]).arg(&profile).args(raw))?;
    eprintln!("{PROFILE} is new: release builds heed it from now on");
    Ok(())
}

/// The compiler's own tool for profiles, which rustup brings.
fn merger() -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "target-libdir"]).current_dir(run::root()?).output();
    let output = output.context("start rustc")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let tool = Path::new(said.trim()).parent().map(|folder| folder.join("bin/llvm-profdata")).unwrap_or_default();
    if !tool.is_file() {
        let added = Command::new("rustup").args(["component", "add", "llvm-tools"]).current_dir(run::root()?).output();
        if !added.is_ok_and(|output| output.status.success()) || !tool.is_file() {
            bail!("missing: llvm-profdata (`rustup component add llvm-tools`)");
        }
    }
    Ok(tool)
}

fn shown(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_user_stay() {
        assert_eq!(join("", "", "-Ca"), "-Ca");
        assert_eq!(join("", " -Cb  -Cc ", "-Ca"), "-Cb\x1f-Cc\x1f-Ca");
        assert_eq!(join("-Cd e\x1f-Cf", "-Cb", "-Ca"), "-Cd e\x1f-Cf\x1f-Ca");
    }

    #[test]
    fn only_what_was_profiled_is_built_with_the_profile() {
        let heeds = |package: &str| {
            let mut cargo = Command::new("cargo");
            with_profile(&mut cargo, package).expect("a root");
            cargo.get_envs().count() == 1
        };
        assert!(run::root().expect("a root").join(PROFILE).is_file());
        assert!(heeds(PROFILED) && !heeds("mesh-agent"));
    }
}
