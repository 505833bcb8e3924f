//! Which test binaries there are, by what cargo says of a build, and which of them run beside each other. Used by `cargo xtask test`.
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A binary of tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binary {
    /// The crate.
    pub package: String,
    /// The library, the program or the file of tests.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Tests run in the folder of their crate.
    pub folder: PathBuf,
}

/// Binaries that bring a Kubernetes cluster up: they wait more than they work.
const CLUSTERS: [(&str, &str); 7] = [
    ("mesh-agent", "cluster_kube"),
    ("mesh-cli", "cluster"),
    ("mesh-cni", "cluster"),
    ("mesh-control", "kubernetes"),
    ("mesh-tests", "kubernetes"),
    ("xtask", "cluster"),
    ("xtask", "deploy"),
];
/// What must have the machine to itself: it says how long something took.
const ALONE: [(&str, &str); 1] = [("xtask", "measure")];

/// What runs one after the other, in three rows.
#[derive(Debug, Default, PartialEq)]
pub struct Rows {
    /// Beside the clusters.
    pub plain: Vec<Binary>,
    /// With a cluster.
    pub clusters: Vec<Binary>,
    /// When both are through.
    pub alone: Vec<Binary>,
}

impl Rows {
    /// In order, so that each run is like the one before.
    pub fn of(mut binaries: Vec<Binary>) -> Rows {
        binaries.sort();
        let mut rows = Rows::default();
        for binary in binaries {
            let is_in = |row: &[(&str, &str)]| row.contains(&(&*binary.package, &*binary.name));
            match () {
                () if is_in(&CLUSTERS) => rows.clusters.push(binary),
                () if is_in(&ALONE) => rows.alone.push(binary),
                () => rows.plain.push(binary),
            }
        }
        rows
    }
}

/// Reads the lines that `cargo test --no-run --message-format=json` prints (the Cargo book, "External tools", "JSON messages").
pub fn read(lines: &str) -> Result<Vec<Binary>> {
    let mut found = Vec::new();
    // What a test prints while it is built is not a message.
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo's message cannot be read")?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool) == Some(true);
        let (Some("compiler-artifact"), true, Some(path)) = (text("/reason"), is_test, text("/executable")) else {
            continue;
        };
        let name = text("/target/name").context("a test without a name")?;
        let manifest = Path::new(text("/manifest_path").context("a test without a manifest")?);
        let folder = manifest.parent().context("a manifest without a folder")?;
        let package = package(text("/package_id").unwrap_or_default(), folder);
        found.push(Binary { package, name: name.into(), path: path.into(), folder: folder.into() });
    }
    Ok(found)
}

/// `path+file:///folder/name#0.1.0`, or, where the folder has another name, `path+file:///folder#name@0.1.0`.
fn package(id: &str, folder: &Path) -> String {
    let named = id.rsplit_once('#').and_then(|(_, tail)| tail.split_once('@')).map(|(name, _)| name.to_owned());
    named.unwrap_or_else(|| folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn test_binaries_are_found_and_put_into_rows() {
        let artifact = |id: &str, folder: &str, name: &str, test: bool| {
            json!({
                "reason": "compiler-artifact",
                "package_id": id,
                "manifest_path": format!("/w/{folder}/Cargo.toml"),
                "target": { "name": name },
                "profile": { "test": test },
                "executable": test.then(|| format!("/t/{folder}-{name}")),
            })
            .to_string()
        };
        let lines = [
            json!({ "reason": "build-script-executed" }).to_string(),
            "warning: not a message".to_owned(),
            artifact("path+file:///w/xtask#0.1.0", "xtask", "measure", true),
            artifact("path+file:///w/tests#mesh-tests@0.1.0", "tests", "kubernetes", true),
            artifact("path+file:///w/tests#mesh-tests@0.1.0", "tests", "demo", true),
            artifact("path+file:///w/mesh-core#0.1.0", "mesh-core", "mesh_core", true),
            artifact("path+file:///w/mesh-core#0.1.0", "mesh-core", "mesh_core", false),
        ];
        let rows = Rows::of(read(&lines.join("\n")).unwrap());
        let names = |row: &[Binary]| row.iter().map(|b| format!("{} {}", b.package, b.name)).collect::<Vec<_>>();
        assert_eq!(names(&rows.plain), ["mesh-core mesh_core", "mesh-tests demo"]);
        assert_eq!(names(&rows.clusters), ["mesh-tests kubernetes"]);
        assert_eq!(names(&rows.alone), ["xtask measure"]);
        assert_eq!(
            (&*rows.plain[0].folder, &*rows.plain[0].path),
            (Path::new("/w/mesh-core"), Path::new("/t/mesh-core-mesh_core"))
        );
        read("{broken").unwrap_err();
    }

    /// A file of tests that is renamed must not silently move to another row.
    #[test]
    fn every_row_names_files_that_are_there() {
        let root = crate::run::root().unwrap();
        for (package, name) in CLUSTERS.into_iter().chain(ALONE) {
            let tests = root.join(if package == "mesh-tests" { "tests" } else { package }).join("tests");
            let is_there = tests.join(format!("{name}.rs")).exists() || tests.join(name).join("main.rs").exists();
            assert!(is_there, "{package} has no tests {name}");
        }
    }
}
