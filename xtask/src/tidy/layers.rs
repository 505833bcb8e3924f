//! Rules about who may use whom: crates by the table of ARCHITECTURE.md, modules of one crate without a cycle.
use super::Complaint;
use super::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};

/// What each crate may depend on, of ours.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("mesh-common", &[]),
    ("mesh-ebpf", &["mesh-common"]),
    ("mesh-core", &["mesh-common"]),
    ("mesh-proto", &["mesh-common", "mesh-core"]),
    ("mesh-runtime", &[]),
    ("mesh-transport", &["mesh-core", "mesh-runtime"]),
    ("mesh-client", &["mesh-proto", "mesh-core", "mesh-transport", "mesh-runtime"]),
    ("mesh-agent", &["mesh-common", "mesh-core", "mesh-proto", "mesh-runtime", "mesh-transport", "mesh-client"]),
    ("mesh-waypoint", &["mesh-common", "mesh-core", "mesh-proto", "mesh-runtime", "mesh-transport", "mesh-client"]),
    ("mesh-control", &["mesh-common", "mesh-core", "mesh-proto", "mesh-runtime", "mesh-transport", "mesh-client"]),
    ("mesh-cli", &["mesh-common", "mesh-core", "mesh-proto", "mesh-runtime", "mesh-transport", "mesh-client"]),
    ("mesh-cni", &["mesh-common", "mesh-proto"]),
    ("xtask", &[]),
];

/// Only these may use a third-party crate that would blur a border.
const ONLY: [(&str, &[&str]); 2] =
    [("aya", &["mesh-agent", "mesh-common"]), ("kube", &["mesh-control", "mesh-cli", "mesh-agent"])];

/// Crates depend downwards only. The lab may use every library.
pub fn crates(tree: &Tree) -> Vec<Complaint> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path.ends_with("/Cargo.toml")) {
        let Some((name, "Cargo.toml")) = file.path.split_once('/') else { continue };
        let mut section = "";
        for line in file.text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let key: String =
                line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_').collect();
            if !section.contains("dependencies") || key.is_empty() {
                continue;
            }
            let mut complain =
                |problem: String| found.push(Complaint { place: file.path.clone(), problem, soft: false });
            if let Some((_, owners)) = ONLY.iter().find(|(dependency, _)| *dependency == key)
                && !owners.contains(&name)
            {
                complain(format!("only {} may use {key}", owners.join(" and ")));
            }
            let ours = key.starts_with("mesh-") || key == "xtask";
            if let Some((_, allowed)) = MAY_USE.iter().find(|(c, _)| *c == name)
                && ours
                && section == "[dependencies]"
                && !allowed.contains(&key.as_str())
            {
                complain(format!("{name} may not use {key}"));
            }
        }
    }
    found
}

/// The top-level modules of a crate form no import cycle; `lib.rs`, `main.rs` and tests may name anything.
pub fn modules(tree: &Tree) -> Vec<Complaint> {
    let mut edges: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for file in tree.rust() {
        let Some((name, rest)) = file.path.split_once("/src/") else { continue };
        let module = rest.split('/').next().unwrap_or("").trim_end_matches(".rs");
        if ["lib", "main", "bin", "tests", "fuzz", "testing"].contains(&module) || rest.ends_with("tests.rs") {
            continue;
        }
        let code = file.text.split("#[cfg(test)]").next().unwrap_or("");
        let uses = edges.entry((name.to_string(), module.to_string())).or_default();
        for line in code.lines().map(|l| l.split("//").next().unwrap_or("")) {
            for part in line.split("crate::").skip(1) {
                let target: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if !target.is_empty() && target != module {
                    uses.insert(target);
                }
            }
        }
    }
    let reaches = |krate: &str, from: &str, to: &str| {
        let (mut todo, mut seen) = (vec![from.to_string()], BTreeSet::new());
        while let Some(at) = todo.pop() {
            for next in edges.get(&(krate.to_string(), at)).into_iter().flatten() {
                if next == to {
                    return true;
                }
                if seen.insert(next.clone()) {
                    todo.push(next.clone());
                }
            }
        }
        false
    };
    let mut found = Vec::new();
    for ((krate, module), uses) in &edges {
        for target in uses.iter().filter(|t| *t > module && reaches(krate, t, module)) {
            let problem = format!("modules `{module}` and `{target}` import each other: move what they share down");
            found.push(Complaint { place: format!("{krate}/src"), problem, soft: false });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upward_dependency_is_found() {
        let tree = Tree::of(&[
            (
                "mesh-core/Cargo.toml",
                "[package]\nname = \"mesh-core\"\n[dependencies]\nmesh-proto.workspace = true\naya = \"1\"\n",
            ),
            (
                "mesh-client/Cargo.toml",
                "[dependencies]\nmesh-core.workspace = true\n[dev-dependencies]\nmesh-control.workspace = true\n",
            ),
        ]);
        let problems: Vec<_> = crates(&tree).into_iter().map(|c| c.problem).collect();
        assert_eq!(problems, ["mesh-core may not use mesh-proto", "only mesh-agent and mesh-common may use aya"]);
    }

    #[test]
    fn a_cycle_of_modules_is_found_but_not_one_of_tests() {
        let cycle = Tree::of(&[
            ("k/src/a.rs", "use crate::b::B;\n"),
            ("k/src/b/mod.rs", "use crate::c::C;\n"),
            ("k/src/c.rs", "use crate::a::A;\n"),
        ]);
        assert_eq!(modules(&cycle).len(), 2);
        let fine = Tree::of(&[
            ("k/src/a.rs", "use crate::b::B; // crate::c\n"),
            ("k/src/b.rs", "#[cfg(test)]\nmod tests { use crate::a::A; }\n"),
        ]);
        assert_eq!(modules(&fine), []);
    }
}
