//! `cargo xtask tidy`: the rules of the tree that no compiler checks. Each rule is a function from the tree to complaints.
mod layers;
mod text;
mod tree;

use anyhow::{Result, bail};
use tree::Tree;

/// Options.
#[derive(clap::Args)]
pub struct Args {}

/// A broken rule at a place.
#[derive(Debug, PartialEq)]
pub struct Complaint {
    /// File, with a line where that helps.
    pub place: String,
    /// What is wrong and what to do.
    pub problem: String,
    /// A soft rule is shown but does not fail.
    pub soft: bool,
}

type Rule = (&'static str, fn(&Tree) -> Vec<Complaint>);

const RULES: [Rule; 9] = [
    ("every Rust file opens with //!", text::heads),
    ("files are short", text::lengths),
    ("nothing is left half done", text::forbidden_words),
    ("no path of a machine", text::machine_paths),
    ("no private key", text::private_keys),
    ("unsafe only where it is allowed", text::unsafe_places),
    ("documented commands and links exist", text::documents),
    ("crates depend downwards", layers::crates),
    ("modules form no cycle", layers::modules),
];

/// Runs the verb.
pub fn run(_args: &Args) -> Result<()> {
    crate::run::need(&["git"])?;
    let tree = Tree::load(&crate::run::root()?)?;
    let mut hard = 0;
    for (name, rule) in RULES {
        let complaints = rule(&tree);
        let broken = complaints.iter().filter(|c| !c.soft).count();
        hard += broken;
        let mark = if broken > 0 { "FAIL" } else { "ok" };
        println!("{mark:4}  {name}");
        for complaint in complaints {
            let kind = if complaint.soft { "note" } else { "error" };
            println!("      {kind}: {}: {}", complaint.place, complaint.problem);
        }
    }
    if hard > 0 {
        bail!("{hard} rules broken");
    }
    println!("tidy: {} files checked", tree.files.len());
    Ok(())
}
