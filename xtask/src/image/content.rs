//! Which images there are, what is in them, and how that is built. Called by [`super`].
use super::Image;
use crate::{profile, run};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of the workspace, which is that of the images.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of Istio's Bookinfo, whose manifests name it.
const BOOKINFO: &str = "1.20.3";
/// As whom runs what needs no rights. Any number but root's would do; this one is usual.
const NOBODY: u32 = 65532;

/// A program of the workspace.
#[derive(Debug, PartialEq)]
pub struct Program {
    /// Its crate.
    pub package: &'static str,
    /// Its name, which is also its place in the image: below `/`.
    pub binary: &'static str,
    /// Linked with all it needs, because it runs where no loader is.
    pub is_static: bool,
}

/// An image to be.
#[derive(Debug)]
pub struct Content {
    /// With registry and tag.
    pub name: String,
    title: &'static str,
    /// As whom it runs.
    user: u32,
    /// The first is what runs.
    pub programs: Vec<Program>,
    arguments: Vec<&'static str>,
}

/// The product's.
pub fn product(root: &Path) -> Vec<Content> {
    let program = |name| Program { package: name, binary: name, is_static: false };
    let image = |name: &'static str, title, user| Content {
        name: format!("docker.io/undermesh/{name}:{VERSION}"),
        title,
        user,
        programs: vec![program(name)],
        arguments: Vec::new(),
    };
    let mut agent = image("mesh-agent", "Node agent of the Undermesh service mesh", 0);
    // Not run in a container of the image: the agent copies it to the node, where the kubelet's runtime starts it.
    if root.join("mesh-cni/Cargo.toml").exists() {
        agent.programs.push(Program { package: "mesh-cni", binary: "mesh-cni", is_static: true });
    }
    vec![
        agent,
        image("mesh-control", "Control plane of the Undermesh service mesh", NOBODY),
        image("mesh-waypoint", "L7 proxy of the Undermesh service mesh: waypoints and gateways", NOBODY),
    ]
}

/// Bookinfo's, under the names in Istio's manifests.
pub fn bookinfo() -> Vec<Content> {
    let services = [
        ("productpage", "v1"),
        ("details", "v1"),
        ("reviews", "v1"),
        ("reviews", "v2"),
        ("reviews", "v3"),
        ("ratings", "v1"),
    ];
    let image = |(service, version): (&'static str, &'static str)| Content {
        name: format!("docker.io/istio/examples-bookinfo-{service}-{version}:{BOOKINFO}"),
        title: "Bookinfo made for Undermesh's tests",
        user: NOBODY,
        programs: vec![Program { package: "mesh-tests", binary: "bookinfo", is_static: false }],
        arguments: vec![service, "--version", version],
    };
    services.map(image).into()
}

/// The programs that tests and measurements put load on a cluster with.
pub fn lab() -> Content {
    Content {
        name: format!("docker.io/undermesh/lab:{VERSION}"),
        title: "Load for Undermesh's tests",
        user: NOBODY,
        programs: vec![Program { package: "mesh-tests", binary: "lab", is_static: false }],
        arguments: vec!["load", "serve"],
    }
}

impl Content {
    /// The image without its files.
    pub fn image(&self) -> Image {
        let program = self.programs.first().map(|program| format!("/{}", program.binary)).unwrap_or_default();
        let mut entrypoint = vec![&program[..]];
        entrypoint.extend(&self.arguments);
        Image::new(&self.name, &entrypoint)
            .user(self.user, self.user)
            .label("title", self.title)
            .label("version", VERSION)
            .label("licenses", "Apache-2.0")
    }

    /// The name without registry and tag.
    pub fn file_name(&self) -> &str {
        let path = self.name.rsplit_once(':').map_or(&self.name[..], |(path, _)| path);
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }
}

impl Program {
    /// Where cargo puts it.
    pub fn path(&self, release: bool, target: &Path) -> Result<PathBuf> {
        let folder = if self.is_static { target.join(machine()?) } else { target.to_path_buf() };
        Ok(folder.join(if release { "release" } else { "debug" }).join(self.binary))
    }

    /// Builds it.
    pub fn build(&self, release: bool, target: &Path) -> Result<()> {
        let mut cargo = run::cargo()?;
        cargo.args(["build", "-p", self.package, "--bin", self.binary]);
        if self.is_static {
            // Named, so that what is built for this machine alone, as macros are, is not meant.
            cargo.args(["--target", &machine()?]).env("RUSTFLAGS", "-C target-feature=+crt-static");
        }
        if release {
            cargo.arg("--release");
            profile::heed(&mut cargo, self.package)?;
        }
        // Cargo writes there by itself only if it was told so as this process was.
        run::check(cargo.env("CARGO_TARGET_DIR", target))
    }
}

/// The compiler's name of this kind of machine.
fn machine() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("start rustc")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    ensure!(!host.is_empty(), "rustc does not say what it builds for");
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_names_that_manifests_give_them() {
        let root = run::root().expect("a root");
        let product = product(&root);
        let names: Vec<&str> = product.iter().map(Content::file_name).collect();
        assert_eq!(names, ["mesh-agent", "mesh-control", "mesh-waypoint"]);
        assert_eq!(product[0].name, format!("docker.io/undermesh/mesh-agent:{VERSION}"));
        let chart = std::fs::read_to_string(root.join("deploy/charts/undermesh/Chart.yaml")).expect("the chart");
        assert!(chart.contains(&format!("\nversion: {VERSION}\nappVersion: {VERSION}\n")), "{chart}");
        let manifest = std::fs::read_to_string(root.join("deploy/bookinfo/bookinfo.yaml")).expect("Bookinfo's");
        let named: Vec<&str> = manifest.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
        let mut made: Vec<String> = bookinfo().into_iter().map(|content| content.name).collect();
        made.sort();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, made);
    }

    #[test]
    fn the_dockerfile_makes_the_same_images() {
        let root = run::root().expect("a root");
        let text = std::fs::read_to_string(root.join("deploy/Dockerfile")).expect("the Dockerfile");
        for content in product(&root) {
            let name = content.file_name();
            let stage = format!(
                "FROM scratch AS {name}\nCOPY --from=build /out/{name}/ /\nUSER {0}:{0}\nENTRYPOINT [\"/{name}\"]\n",
                content.user
            );
            assert!(text.contains(&stage), "not in deploy/Dockerfile:\n{stage}");
        }
    }
}
