//! Rules about the text of single files.
use super::Complaint;
use super::tree::{File, Tree};

const SOFT_LINES: usize = 500;
const HARD_LINES: usize = 1100;

/// Where `unsafe` may stand; each use there says why it is sound (clippy checks that).
const UNSAFE: [&str; 12] = [
    "mesh-common/src/",
    "mesh-ebpf/src/",
    "mesh-agent/src/bpf/",
    "mesh-agent/src/enrol/",
    "mesh-agent/src/keeper/",
    "mesh-agent/src/dns/",
    "mesh-agent/tests/",
    "mesh-transport/src/socket",
    "mesh-transport/src/netns",
    "mesh-transport/tests/",
    "tests/src/harness/",
    "mesh-runtime/src/",
];

fn complaint(file: &File, line: Option<usize>, problem: impl Into<String>) -> Complaint {
    let place = match line {
        Some(line) => format!("{}:{}", file.path, line + 1),
        None => file.path.clone(),
    };
    Complaint { place, problem: problem.into(), soft: false }
}

/// The file of the rules themselves names what it forbids.
fn is_rulebook(file: &File) -> bool {
    file.path.starts_with("xtask/src/tidy/")
}

/// Every file says what it owns.
pub fn heads(tree: &Tree) -> Vec<Complaint> {
    tree.rust()
        .filter(|f| {
            !f.text.lines().find(|l| !l.trim().is_empty()).is_some_and(|l| l.starts_with("//!") && l.len() > 20)
        })
        .map(|f| complaint(f, None, "open the file with a `//!` sentence that says what it owns and who calls it"))
        .collect()
}

/// Long files are shown; very long ones fail.
pub fn lengths(tree: &Tree) -> Vec<Complaint> {
    tree.rust()
        .filter_map(|f| {
            let lines = f.text.lines().count();
            (lines > SOFT_LINES).then(|| Complaint {
                place: f.path.clone(),
                problem: format!("{lines} lines: split it by what it does"),
                soft: lines <= HARD_LINES,
            })
        })
        .collect()
}

/// Lines of a file for which `bad` gives a problem.
fn each_line(tree: &Tree, rust_only: bool, bad: impl Fn(&str) -> Option<String>) -> Vec<Complaint> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| !is_rulebook(f) && (!rust_only || f.path.ends_with(".rs"))) {
        for (n, line) in file.text.lines().enumerate() {
            found.extend(bad(line).map(|problem| complaint(file, Some(n), problem)));
        }
    }
    found
}

/// Words that mean that something is missing.
pub fn forbidden_words(tree: &Tree) -> Vec<Complaint> {
    each_line(tree, true, |line| {
        ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX", "HACK"]
            .iter()
            .find(|word| line.contains(*word))
            .map(|word| format!("`{word}`: finish it or open an issue"))
    })
}

/// Where every node of GKE has its CNI plugins.
const GKE: &str = "/home/kubernetes/bin";

/// Paths that exist on one machine only.
pub fn machine_paths(tree: &Tree) -> Vec<Complaint> {
    each_line(tree, false, |line| {
        ["/work/", "/home/", "/root/", "/Users/"]
            .iter()
            .find(|path| line.replace(GKE, "").contains(*path))
            .map(|path| format!("`{path}...` is a path of somebody's machine"))
    })
}

/// Keys are made at run time, also in tests.
pub fn private_keys(tree: &Tree) -> Vec<Complaint> {
    each_line(tree, false, |line| {
        let armoured = line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----") && !line.contains('"');
        armoured.then(|| "a private key in the tree".to_string())
    })
}

/// `unsafe` blocks, functions and impls stand in the files named above only.
pub fn unsafe_places(tree: &Tree) -> Vec<Complaint> {
    let mut found = Vec::new();
    for file in tree.rust().filter(|f| !is_rulebook(f) && !UNSAFE.iter().any(|place| f.path.starts_with(place))) {
        for (n, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|u| code.contains(u)) {
                found.push(complaint(file, Some(n), "`unsafe` outside the places that may have it"));
            }
        }
    }
    found
}

/// Commands and links that a document names exist.
pub fn documents(tree: &Tree) -> Vec<Complaint> {
    const VERBS: [&str; 10] =
        ["setup", "ebpf", "demo", "test", "bench", "image", "chart", "cluster", "conformance", "tidy"];
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path.ends_with(".md")) {
        for (n, line) in file.text.lines().enumerate() {
            for rest in line.split("cargo xtask ").skip(1) {
                let verb: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
                if !verb.is_empty() && !VERBS.contains(&verb.as_str()) {
                    found.push(complaint(file, Some(n), format!("`cargo xtask {verb}` does not exist")));
                }
            }
            for rest in line.split("](").skip(1) {
                let target = rest.split([')', '#']).next().unwrap_or("");
                let exists = |p: &String| p == target || p.starts_with(&format!("{}/", target.trim_end_matches('/')));
                if !target.is_empty() && !target.contains("://") && !tree.paths.iter().any(exists) {
                    found.push(complaint(file, Some(n), format!("link to `{target}`, which does not exist")));
                }
            }
        }
    }
    if !tree.paths.iter().any(|p| p == "README.md") {
        found.push(Complaint { place: "README.md".into(), problem: "missing".into(), soft: false });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(complaints: Vec<Complaint>) -> Vec<String> {
        complaints.into_iter().map(|c| c.place).collect()
    }

    #[test]
    fn each_rule_finds_its_breach_and_nothing_else() {
        let long = "//! A long file of nothing else.\n".to_string() + &"x\n".repeat(HARD_LINES);
        let tree = Tree::of(&[
            ("a.rs", "//! Owns the letter a, for tests.\nfn a() { todo!() }\n// unsafe { in a comment\n"),
            ("b.rs", "fn b() { unsafe { c() } }\n"),
            ("mesh-common/src/c.rs", "//! Owns the letter c, for tests.\nunsafe fn c() {}\n"),
            ("long.rs", &long),
            (
                "README.md",
                "Run `cargo xtask fly`, then `cargo xtask demo`. See [b](b.rs), [d](d.rs), [e](https://e).\nIn /home/me.\n",
            ),
        ]);
        assert_eq!(places(heads(&tree)), ["b.rs"]);
        assert_eq!(places(lengths(&tree)), ["long.rs"]);
        assert_eq!(places(forbidden_words(&tree)), ["a.rs:2"]);
        assert_eq!(places(unsafe_places(&tree)), ["b.rs:1"]);
        assert_eq!(places(machine_paths(&tree)), ["README.md:2"]);
        assert_eq!(places(documents(&tree)), ["README.md:1", "README.md:1"]);
        assert_eq!(places(private_keys(&Tree::of(&[("k.pem", "-----BEGIN EC PRIVATE KEY-----")]))), ["k.pem:1"]);
    }
}
