//! The programs and images of a cluster, built once from their Go modules into a folder that is kept: `~/.cache/undermesh/cluster-<versions>`.
//! Called by `build` and `up`.
use super::process;
use crate::image::{self, Image};
use crate::run;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const KUBERNETES: &str = "1.34.2";
const ETCD: &str = "3.6.5";
const COREDNS: &str = "1.12.4";

/// The image of every pod's first container, and of the cluster's DNS.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";
pub const COREDNS_IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.12.4";

const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// What a cluster starts that is not built here.
pub const NEEDED: [&str; 10] =
    ["go", "containerd", "runc", run::CNI_PLUGINS, "nft", "conntrack", "busybox", "openssl", "ip", "nsenter"];

/// One program: a Go module of ours around the module of its authors.
struct Source {
    name: &'static str,
    module: &'static str,
    version: &'static str,
    main: &'static str,
}

const SOURCES: [Source; 5] = [
    Source {
        name: "kubernetes",
        module: "k8s.io/kubernetes",
        version: KUBERNETES,
        main: include_str!("assets/kubernetes.go"),
    },
    Source { name: "etcd", module: "go.etcd.io/etcd/server/v3", version: ETCD, main: include_str!("assets/etcd.go") },
    Source {
        name: "coredns",
        module: "github.com/coredns/coredns",
        version: COREDNS,
        main: include_str!("assets/coredns.go"),
    },
    Source { name: "pause", module: "", version: "", main: include_str!("assets/pause.go") },
    Source { name: "fault", module: "", version: "", main: include_str!("assets/fault.go") },
];

/// Where the programs are, built or not.
pub fn folder() -> Result<PathBuf> {
    Ok(run::cache()?.join(format!("cluster-{KUBERNETES}-{ETCD}-{COREDNS}")))
}

/// Builds what is not there yet; minutes the first time, nothing later.
pub fn build() -> Result<PathBuf> {
    run::need(&NEEDED)?;
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // Two builders at a time would take twice as long, and each other's half-written files.
    let lock = File::create(folder.join("lock")).context("open the lock")?;
    lock.lock().context("wait for another builder")?;
    for source in &SOURCES {
        if !is_built(source, &folder) {
            let start = Instant::now();
            eprintln!("building {} {} (once)", source.name, source.version);
            compile(source, &folder).with_context(|| format!("build {}", source.name))?;
            eprintln!("built {} in {} s", source.name, start.elapsed().as_secs());
        }
    }
    for name in COMPONENTS {
        if !folder.join(name).exists() {
            symlink("kubernetes", folder.join(name)).with_context(|| format!("link {name}"))?;
        }
    }
    images(&folder)?;
    Ok(folder)
}

/// Fails with one line if something is missing, without building it.
pub fn check() -> Result<PathBuf> {
    run::need(&NEEDED)?;
    let folder = folder()?;
    let missing: Vec<_> =
        SOURCES.iter().filter(|source| !is_built(source, &folder)).map(|source| source.name).collect();
    ensure!(missing.is_empty(), "missing: {}; run `cargo xtask cluster build`", missing.join(", "));
    Ok(folder)
}

/// Ours change without a version: a copy of what was compiled is kept beside the program.
fn is_built(source: &Source, folder: &Path) -> bool {
    let kept = fs::read_to_string(folder.join(format!("{}.go", source.name)));
    folder.join(source.name).exists() && kept.is_ok_and(|text| text == source.main)
}

fn compile(source: &Source, folder: &Path) -> Result<()> {
    let scratch = folder.join(format!("src-{}", source.name));
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    fs::write(scratch.join("main.go"), source.main)?;
    let module = go_mod(source).with_context(|| format!("missing: the Go module of {}", source.name))?;
    fs::write(scratch.join("go.mod"), module)?;
    let go = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("go");
        // Without cgo the programs are static, run in an image of nothing else, and need no C compiler.
        command.current_dir(&scratch).env("CGO_ENABLED", "0").args(arguments);
        process::output(&mut command).map(drop)
    };
    // The only step that needs the network; its failure says nothing about what is built.
    go(&["mod", "tidy"]).with_context(|| format!("missing: the Go modules of {}", source.name))?;
    let unfinished = scratch.join("program");
    go(&["build", "-ldflags", &link_flags(source), "-o", &unfinished.to_string_lossy(), "."])?;
    fs::rename(&unfinished, folder.join(source.name))?;
    // The image of the former program; most have none.
    let image = folder.join(format!("{}.tar", source.name));
    if image.exists() {
        fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))?;
    }
    fs::write(folder.join(format!("{}.go", source.name)), source.main)?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

/// A program that does not know its version calls itself 0.0.0, which the other components refuse.
fn link_flags(source: &Source) -> String {
    let mut flags = "-s -w".to_owned();
    if source.name == "kubernetes" {
        let mut numbers = source.version.split('.');
        let (major, minor) = (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""));
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            for (name, value) in
                [("gitVersion", &format!("v{}", source.version)[..]), ("gitMajor", major), ("gitMinor", minor)]
            {
                flags += &format!(" -X {package}.{name}={value}");
            }
        }
    }
    flags
}

fn go_mod(source: &Source) -> Result<String> {
    let mut text = format!("module undermesh.test/{}\n\ngo 1.24.0\n", source.name);
    if !source.module.is_empty() {
        text += &format!("\nrequire {} v{}\n", source.module, source.version);
    }
    if source.name == "kubernetes" {
        let said = process::output(Command::new("go").args([
            "mod",
            "download",
            "-json",
            &format!("{}@v{}", source.module, source.version),
        ]))?;
        let said: serde_json::Value = serde_json::from_str(&said).context("read what go printed")?;
        let path = said["GoMod"].as_str().context("go names no go.mod")?;
        let theirs = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        text += &staging(&theirs, source.version)?;
    }
    Ok(text)
}

/// Kubernetes keeps its libraries in its own tree and requires them as v0.0.0; as modules they are published under `v0.` and the rest of its version.
fn staging(theirs: &str, version: &str) -> Result<String> {
    let Some(rest) = version.strip_prefix("1.") else { bail!("{version} is not a version of Kubernetes") };
    let mut text = "\nreplace (\n".to_owned();
    let mut found = false;
    for line in theirs.lines() {
        if let Some((name, to)) = line.split_once("=>")
            && to.trim().starts_with("./staging/")
        {
            let name = name.trim().trim_start_matches("replace ");
            text += &format!("\t{name} => {name} v0.{rest}\n");
            found = true;
        }
    }
    ensure!(found, "no staged libraries in Kubernetes' go.mod");
    Ok(text + ")\n")
}

/// The archives of images that every node gets.
pub fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .collect();
    found.sort();
    Ok(found)
}

fn images(folder: &Path) -> Result<()> {
    let busybox = run::find("busybox").context("busybox is gone")?;
    let mut wanted = vec![
        ("pause", Image::new(PAUSE_IMAGE, &["/pause"]).file(folder.join("pause"), "/pause")),
        ("coredns", Image::new(COREDNS_IMAGE, &["/coredns"]).file(folder.join("coredns"), "/coredns")),
        ("busybox", Image::new("docker.io/library/busybox:latest", &[]).busybox(&busybox)?.command(&["sh"])),
    ];
    if let Some(curl) = run::find("curl") {
        let image = Image::new("docker.io/curlimages/curl:latest", &["/usr/bin/curl"]).busybox(&busybox)?;
        wanted.push(("curl", image.file(curl, "/usr/bin/curl")));
    }
    for (name, image) in wanted {
        let archive = folder.join(format!("{name}.tar"));
        if !archive.exists() {
            image::write(&image, &archive).with_context(|| format!("make the image of {name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn staged_libraries_get_the_version_they_are_published_under() {
        let theirs = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tother => other v1.0.0\n)\n";
        assert_eq!(
            super::staging(theirs, "1.34.2").expect("staged"),
            "\nreplace (\n\tk8s.io/api => k8s.io/api v0.34.2\n)\n"
        );
        super::staging("module x\n", "1.34.2").expect_err("nothing is staged");
    }
}
