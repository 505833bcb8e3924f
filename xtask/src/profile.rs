//! The profile that `mesh-waypoint` is compiled with for release, by `bench` and `image`: which of its paths requests take, as a binary that counts them has seen under
//! load. It is kept beside the crate, as the kernel object is, because making it takes root and half an hour; `cargo xtask bench --train` makes it anew.
//!
//! It knows functions by names that depend on the compiler, the kind of machine, `[profile.release]` and all crates that `mesh-waypoint` is made of, with their versions and
//! features. What it does not know is compiled as if there were no profile: an old one costs speed and nothing else. What it was made of is kept beside it, so
//! that a build that loses by it says so.
use crate::run;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled with a profile: crate and binary.
const PROFILED: &str = "mesh-waypoint";
/// The profile, in the format of the pinned compiler.
const PROFILE: &str = "mesh-waypoint/requests.profdata";
/// What it was made of.
const MADE_OF: &str = "mesh-waypoint/requests.made-of.txt";
/// Names of the functions that ran, those that ran most first: in this order they are linked. The rest of the program follows and is hardly ever brought into memory.
const ORDER: &str = "mesh-waypoint/requests.order.txt";
/// On this kind of machine rustc links with LLD, which takes such a list; other linkers do not know the option.
const HOST_WITH_LLD: &str = "x86_64-unknown-linux-gnu";
/// With any of these in the environment it is not known who links.
const OTHERS: [&str; 2] = ["CARGO_BUILD_TARGET", "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER"];
/// Separates the flags of `CARGO_ENCODED_RUSTFLAGS`; those in `RUSTFLAGS` cannot have spaces.
const SEPARATOR: &str = "\x1f";

/// Builds programs for release: all binaries of these crates.
pub fn build(packages: &[&str]) -> Result<()> {
    eprintln!("building release binaries ...");
    let others: Vec<&str> = packages.iter().copied().filter(|package| *package != PROFILED).collect();
    // Without a name cargo would build all there are.
    if !others.is_empty() {
        let named = others.iter().flat_map(|package| ["-p", package]);
        run::check(run::cargo()?.args(["build", "--quiet", "--release", "--bins"]).args(named))?;
    }
    if others.len() < packages.len() {
        let mut cargo = alone()?;
        heed(&mut cargo, PROFILED)?;
        run::check(&mut cargo)?;
    }
    Ok(())
}

/// A build of the program by itself, as images are built: with others it would have their features of shared crates, too, and the profile would be of other functions.
fn alone() -> Result<Command> {
    let mut cargo = run::cargo()?;
    cargo.args(["build", "--quiet", "--release", "-p", PROFILED, "--bin", PROFILED]);
    Ok(cargo)
}

/// Has a release build of `package` heed the profile, if there is one of it.
pub fn heed(cargo: &mut Command, package: &str) -> Result<()> {
    if package != PROFILED {
        return Ok(());
    }
    let root = run::root()?;
    let known = std::fs::read_to_string(root.join(MADE_OF)).with_context(|| format!("read {MADE_OF}"))?;
    let now = made_of()?;
    if let Some(other) = differs(&known, &now) {
        eprintln!(
            "the profile of {PROFILED} was made of other things, as {other:?}: requests cost more until `cargo xtask bench --train` makes it anew"
        );
    }
    let profile = format!("-Cprofile-use={}", shown(&root.join(PROFILE))?);
    // Of functions that were changed since nobody needs to hear in each build.
    let mut heeded = vec![profile, "-Cllvm-args=-no-pgo-warn-mismatch".to_owned()];
    let is_other = OTHERS.iter().any(|name| std::env::var_os(name).is_some());
    if !is_other && links_with_lld(&now, &flags(&[])) {
        heeded.push(format!("-Clink-arg=-Wl,--symbol-ordering-file={}", shown(&root.join(ORDER))?));
        heeded.push("-Clink-arg=-Wl,--no-warn-symbol-ordering".to_owned());
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&heeded.iter().map(String::as_str).collect::<Vec<_>>()));
    Ok(())
}

/// These flags after those that the user's environment gives. With flags there, cargo heeds none of its configuration files.
fn flags(more: &[&str]) -> String {
    let encoded = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let plain = std::env::var("RUSTFLAGS").unwrap_or_default();
    join(&encoded, &plain, more)
}

fn join(encoded: &str, plain: &str, more: &[&str]) -> String {
    let given: Vec<&str> = match encoded {
        "" => plain.split_whitespace().collect(),
        encoded => encoded.split(SEPARATOR).collect(),
    };
    given.iter().chain(more).copied().collect::<Vec<_>>().join(SEPARATOR)
}

/// What names of functions depend on, a line each: the compiler with the kind of machine, the release profile, and all crates with versions and features.
fn made_of() -> Result<String> {
    let root = run::root()?;
    let said = |command: &mut Command| -> Result<String> {
        let output = command.current_dir(&root).output().with_context(|| format!("start {command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let compiler = said(Command::new("rustc").arg("-vV"))?;
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let release = manifest.split("[profile.release]\n").nth(1).unwrap_or_default().split("\n[").next();
    let tree = ["tree", "-p", PROFILED, "-e", "normal,build", "--prefix", "none", "--format", "{p} [{f}]"];
    let crates = said(run::cargo()?.args(tree))?;
    Ok(lines(&[&compiler, release.unwrap_or_default()], &crates))
}

/// The lines of `first`, then those of the crates, each once and without the folders of our own.
fn lines(first: &[&str], crates: &str) -> String {
    let mut crates: Vec<String> = crates.lines().map(|line| own_folder_cut(line.trim_end_matches(" (*)"))).collect();
    crates.sort_unstable();
    crates.dedup();
    let first = first.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
    first.map(str::to_owned).chain(crates).map(|line| line + "\n").collect()
}

/// `mesh-core v0.1.0 (/some/folder) [a,b]` without the folder.
fn own_folder_cut(line: &str) -> String {
    match (line.find(" (/"), line.find(") [")) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &line[..begin], &line[end + 1..]),
        _ => line.to_owned(),
    }
}

/// The first line that only one of the two has.
fn differs<'a>(known: &'a str, now: &'a str) -> Option<&'a str> {
    let only = |one: &'a str, other: &'a str| one.lines().find(|line| !other.lines().any(|known| known == *line));
    only(now, known).or_else(|| only(known, now))
}

/// Whether what `compiler` says of itself, and these flags of the user, mean that LLD links.
fn links_with_lld(compiler: &str, flags: &str) -> bool {
    let is_host = compiler.lines().any(|line| line.strip_prefix("host: ") == Some(HOST_WITH_LLD));
    is_host && !["linker", "fuse-ld", "link-self-contained"].iter().any(|word| flags.contains(word))
}

/// The functions of which `shown`, by `llvm-profdata show --all-functions --counts`, tells that any part of them ran: most often first, then by name, a line each.
fn by_count(shown: &str) -> String {
    let mut all: Vec<(u64, &str)> = Vec::new();
    let mut name = None;
    for line in shown.lines() {
        if let Some(counts) = line.strip_prefix("    Block counts: [") {
            let counts = counts.trim_end_matches(']').split(", ").filter_map(|count| count.parse().ok());
            let most = counts.max().filter(|most| *most > 0);
            all.extend(most.zip(name.take()));
        } else if let Some(function) = line.strip_prefix("  ").filter(|text| !text.starts_with(' ')) {
            // What is local to a unit stands there with it.
            name = function.strip_suffix(':').map(|text| text.rsplit(';').next().unwrap_or(text));
        }
    }
    all.sort_unstable_by(|(one, name), (two, other)| two.cmp(one).then(name.cmp(other)));
    let mut known = std::collections::HashSet::new();
    all.into_iter().filter(|(_, name)| known.insert(*name)).map(|(_, name)| format!("{name}\n")).collect()
}

/// Makes the profile anew, with load of so many seconds for each of its parts.
pub fn train(seconds: u32) -> Result<()> {
    run::need(&["wrk", "h2load"])?;
    ensure!(
        std::env::var_os("CARGO_BUILD_TARGET").is_none(),
        "CARGO_BUILD_TARGET is set: a profile made so is of no other build's functions; unset it"
    );
    let merger = merger()?;
    build(&["mesh-agent", "mesh-control", "mesh-tests"])?;
    let (release, own) = (run::binary_dir("release")?, run::binary_dir("train")?);
    let (bin, counted) = (own.join("release"), own.join("counted"));
    eprintln!("building a {PROFILED} that counts ...");
    let mut cargo = alone()?;
    cargo.env("CARGO_TARGET_DIR", &own);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&[&format!("-Cprofile-generate={}", shown(&counted)?)]));
    run::check(&mut cargo)?;
    for binary in ["bench", "lab", "mesh-agent", "mesh-control"] {
        let link = bin.join(binary);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(release.join(binary), &link).with_context(|| format!("link {}", link.display()))?;
    }
    let _ = std::fs::remove_dir_all(&counted);
    let mut bench = Command::new(release.join("bench"));
    run::check(bench.args(["--train", "--seconds", &seconds.to_string()]).env("UNDERMESH_BIN_DIR", &bin))?;
    let raw = std::fs::read_dir(&counted).into_iter().flatten();
    let raw: Vec<PathBuf> = raw.filter_map(|entry| Some(entry.ok()?.path())).collect();
    ensure!(!raw.is_empty(), "{PROFILED} has written nothing of what it counted to {}", counted.display());
    let (root, merged) = (run::root()?, own.join("requests.profdata"));
    run::check(Command::new(&merger).args(["merge", "--sparse", "-o"]).arg(&merged).args(raw))?;
    let order = Command::new(&merger).args(["show", "--all-functions", "--counts"]).arg(&merged).output();
    let order = order.with_context(|| format!("start {}", merger.display()))?;
    ensure!(order.status.success(), "llvm-profdata: {}", String::from_utf8_lossy(&order.stderr).trim());
    std::fs::write(root.join(ORDER), by_count(&String::from_utf8_lossy(&order.stdout)))
        .with_context(|| format!("write {ORDER}"))?;
    // Beside the old one first: half a profile would be heeded without a word.
    let fresh = root.join(format!("{PROFILE}.new"));
    std::fs::copy(&merged, &fresh).context("keep the profile")?;
    std::fs::rename(&fresh, root.join(PROFILE)).context("keep the profile")?;
    std::fs::write(root.join(MADE_OF), made_of()?).with_context(|| format!("write {MADE_OF}"))?;
    eprintln!("{PROFILE} is new: release builds heed it from now on");
    Ok(())
}

/// The compiler's own tool for profiles, which rustup brings.
fn merger() -> Result<PathBuf> {
    let root = run::root()?;
    let output = Command::new("rustc").args(["--print", "target-libdir"]).current_dir(&root).output();
    let output = output.context("start rustc")?;
    ensure!(output.status.success(), "rustc: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said = String::from_utf8_lossy(&output.stdout);
    let tool = Path::new(said.trim()).parent().map(|folder| folder.join("bin/llvm-profdata")).unwrap_or_default();
    if !tool.is_file() {
        run::need(&["rustup"])?;
        run::check(Command::new("rustup").args(["component", "add", "llvm-tools"]).current_dir(&root))?;
    }
    if !tool.is_file() {
        bail!("{} is missing: the rustc on the PATH is not rustup's", tool.display());
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
        assert_eq!(join("", "", &["-Ca"]), "-Ca");
        assert_eq!(join("", " -Cb  -Cc ", &["-Ca", "-Cd"]), "-Cb\x1f-Cc\x1f-Ca\x1f-Cd");
        assert_eq!(join("-Cd e\x1f-Cf", "-Cb", &["-Ca"]), "-Cd e\x1f-Cf\x1f-Ca");
    }

    #[test]
    fn functions_are_linked_in_the_order_of_how_often_they_ran() {
        let shown = "Counters:\n  unit-cgu.0;once:\n    Hash: 0x1\n    Counters: 2\n    Block counts: [0, 1]\n  never:\n    Hash: 0x2\n    Counters: 1\n    Block counts: [0]\n  often:\n    Hash: 0x3\n    Counters: 3\n    Block counts: [3, 70, 2]\n  also_once:\n    Block counts: [1]\n  other;once:\n    Block counts: [1]\nInstrumentation level: IR\nTotal functions: 4\n";
        assert_eq!(by_count(shown), "often\nalso_once\nonce\n");
        let kept = std::fs::read_to_string(run::root().expect("a root").join(ORDER)).expect("the order");
        assert!(kept.lines().count() > 1000 && kept.lines().all(|line| !line.contains([' ', ';', ':'])));
    }

    #[test]
    fn who_links_otherwise_is_told_nothing_of_the_order() {
        let host = |name: &str| format!("rustc 1.95.0\nhost: {name}\n");
        for (name, flags, expected) in [
            (HOST_WITH_LLD, "", true),
            (HOST_WITH_LLD, "-Ctarget-cpu=native", true),
            (HOST_WITH_LLD, "-Clink-arg=-fuse-ld=mold", false),
            (HOST_WITH_LLD, "-Clinker=gcc", false),
            (HOST_WITH_LLD, "-Clinker-features=-lld", false),
            ("aarch64-unknown-linux-gnu", "", false),
            ("x86_64-unknown-linux-musl", "", false),
        ] {
            assert_eq!(links_with_lld(&host(name), flags), expected, "{name} {flags}");
        }
    }

    #[test]
    fn only_what_was_profiled_is_built_with_the_profile() {
        let heeds = |package: &str| {
            let mut cargo = Command::new("cargo");
            heed(&mut cargo, package).expect("a profile");
            cargo.get_envs().count() == 1
        };
        assert!(run::root().expect("a root").join(PROFILE).is_file());
        assert!(heeds(PROFILED) && !heeds("mesh-agent"));
    }

    #[test]
    fn what_a_profile_is_made_of_has_no_folders_and_each_crate_once() {
        let crates = "mesh-core v0.1.0 (/a b/c) []\nbytes v1.2.3 [default,std]\nmesh-core v0.1.0 (/a b/c) [] (*)\n";
        let text = lines(&["rustc 1\nhost: x\n\n", "lto = \"fat\"\n"], crates);
        assert_eq!(text, "rustc 1\nhost: x\nlto = \"fat\"\nbytes v1.2.3 [default,std]\nmesh-core v0.1.0 []\n");
        assert_eq!(differs(&text, &text), None);
        assert_eq!(differs(&text, &text.replace("1.2.3", "1.2.4")), Some("bytes v1.2.4 [default,std]"));
        assert_eq!(
            differs(&text, &text.replace("bytes v1.2.3 [default,std]\n", "")),
            Some("bytes v1.2.3 [default,std]")
        );
    }
}
