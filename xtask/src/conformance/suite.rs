//! The suite and the servers that its tests talk to, built once from their Go modules into a folder that is kept. Called by [`super`].
use crate::image::{self, Image};
use crate::run;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of the Gateway API.
const VERSION: &str = "v1.6.3";
/// Of Istio, by whose echo server tests of meshes are done.
const ISTIO: &str = "v0.0.0-20260827124520-eed52ebb66ad";

/// The DNS server by which tests of UDP are done, with the plugins that it needs there; that of clusters has others.
const DNS: &str = "package main\n\nimport (\n\t\"github.com/coredns/coredns/coremain\"\n\t_ \"github.com/coredns/coredns/plugin/errors\"\n\
    \t_ \"github.com/coredns/coredns/plugin/forward\"\n\t_ \"github.com/coredns/coredns/plugin/log\"\n\
    \t_ \"github.com/coredns/coredns/plugin/whoami\"\n)\n\nfunc main() { coremain.Run() }\n";

const SUITE: &str = "package conformance\n\nimport (\n\t\"testing\"\n\n\t\"sigs.k8s.io/gateway-api/conformance\"\n)\n\n\
    func TestConformance(t *testing.T) { conformance.RunConformance(t) }\n";

/// Builds what is not there yet; minutes the first time, nothing later.
pub fn build() -> Result<PathBuf> {
    let folder = run::cache()?.join(format!("conformance-{VERSION}"));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let modules = format!("sigs.k8s.io/gateway-api/conformance {VERSION}\n\tsigs.k8s.io/gateway-api {VERSION}");
    let source = module(&folder, "suite", &modules, "", &[("run_test.go", SUITE)])?;
    if !folder.join("images").exists() {
        eprintln!("building the suite {VERSION} (once)");
        go(&source, &["mod", "tidy"]).context("missing: the Go modules of the suite")?;
        go(&source, &["test", "-c", "-o", &path(&folder, "conformance.test"), "."])?;
        let echo = "sigs.k8s.io/gateway-api/conformance/echo-basic";
        go(&source, &["build", "-o", &path(&folder, "echo-basic"), echo])?;
        copy(&Path::new(&listed(&source, "sigs.k8s.io/gateway-api")?).join("config/crd"), &folder.join("crd"))?;
        let manifests = listed(&source, "sigs.k8s.io/gateway-api/conformance")?;
        let mut names = BTreeSet::new();
        named_images(Path::new(&manifests), &mut names)?;
        // What is written last says that all is there.
        fs::write(folder.join("images"), Vec::from_iter(names).join("\n")).context("write the names of images")?;
    }
    let names = names(&folder)?;
    for version in names.lines().filter_map(dns_version) {
        let program = format!("coredns-{version}");
        if !folder.join(&program).exists() {
            eprintln!("building CoreDNS {version} for the tests of UDP (once)");
            let wanted = format!("github.com/coredns/coredns {version}");
            let source = module(&folder, &format!("{program}-source"), &wanted, "", &[("main.go", DNS)])?;
            go(&source, &["mod", "tidy"]).context("missing: the Go modules of CoreDNS")?;
            go(&source, &["build", "-ldflags=-s -w", "-o", &path(&folder, &program), "."])?;
        }
    }
    if !folder.join("echo.crt").exists() {
        eprintln!("building the echo server of the tests of meshes (once)");
        // Two modules that it names are not published as it names them.
        let replaced = "replace istio.io/api => istio.io/api v1.31.1\nreplace github.com/envoyproxy/go-control-plane/envoy => \
                        github.com/envoyproxy/go-control-plane/envoy v1.37.0\n";
        let source = module(&folder, "echo", &format!("istio.io/istio {ISTIO}"), replaced, &[])?;
        for part in ["server", "client"] {
            let package = format!("istio.io/istio/pkg/test/echo/cmd/{part}");
            let out = path(&folder, &format!("echo-{part}"));
            go(&source, &["build", "-mod=mod", "-ldflags=-s -w", "-o", &out, &package])?;
        }
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=echo"]);
        openssl.args(["-addext", "subjectAltName=DNS:echo", "-keyout", &path(&folder, "echo.key")]);
        run::check(openssl.args(["-out", &path(&folder, "echo.crt")]))?;
    }
    Ok(folder)
}

/// The images that the suite's manifests name, made of what was built; archives.
pub fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for name in names(folder)?.lines() {
        let image = match dns_version(name) {
            Some(version) => {
                Image::new(name, &["/coredns"]).file(folder.join(format!("coredns-{version}")), "/coredns")
            }
            None if name.contains("/echo-basic") => {
                Image::new(name, &["/echo-basic"]).file(folder.join("echo-basic"), "/echo-basic")
            }
            None if name.contains("/echo-advanced") => Image::new(name, &["/usr/local/bin/server"])
                .file(folder.join("echo-server"), "/usr/local/bin/server")
                .file(folder.join("echo-client"), "/usr/local/bin/client")
                .file(folder.join("echo.crt"), "/cert.crt")
                .file(folder.join("echo.key"), "/cert.key"),
            None => bail!("nobody knows how the image {name} is made"),
        };
        let archive = folder.join(format!("{}.tar", name.replace(['/', ':'], "_")));
        image::write(&image, &archive).with_context(|| format!("make the image {name}"))?;
        archives.push(archive);
    }
    Ok(archives)
}

fn names(folder: &Path) -> Result<String> {
    fs::read_to_string(folder.join("images")).context("read the names of images")
}

/// The version of CoreDNS that an image is named for; what is in it is just that one.
fn dns_version(image: &str) -> Option<&str> {
    image.contains("/coredns").then(|| image.rsplit_once(':'))?.map(|(_, version)| version)
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// A Go module of ours around those of others.
fn module(folder: &Path, name: &str, wanted: &str, more: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
    let source = folder.join("src").join(name);
    fs::create_dir_all(&source).with_context(|| format!("make {}", source.display()))?;
    if !source.join("go.mod").exists() {
        let text = format!("module undermesh.test/{name}\n\ngo 1.26.0\n\nrequire (\n\t{wanted}\n)\n\n{more}");
        fs::write(source.join("go.mod"), text).context("write go.mod")?;
    }
    for (name, text) in files {
        fs::write(source.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(source)
}

fn go(source: &Path, arguments: &[&str]) -> Result<()> {
    // Without cgo the programs are static, and run in an image of nothing else.
    run::check(Command::new("go").current_dir(source).env("CGO_ENABLED", "0").args(arguments))
}

/// Where a module is.
fn listed(source: &Path, module: &str) -> Result<String> {
    let output = Command::new("go").current_dir(source).args(["list", "-m", "-f", "{{.Dir}}", module]).output();
    let output = output.context("start go")?;
    ensure!(output.status.success(), "go list: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Copies a folder of the module cache, whose files nobody may write.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::write(&to, fs::read(entry.path())?).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}

/// The images that manifests below a folder name.
fn named_images(folder: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            named_images(&path, names)?;
        } else if path.extension().is_some_and(|end| end == "yaml") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let images = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: "));
            let is_built = |name: &&str| name.starts_with("registry.k8s.io/gateway-api/") || name.contains("/coredns");
            names.extend(images.map(str::trim).filter(is_built).map(str::to_owned));
        }
    }
    Ok(())
}
