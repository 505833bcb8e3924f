//! The tracked files of the repository, read once.
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// One text file.
#[derive(Debug)]
pub struct File {
    /// Path from the root.
    pub path: String,
    /// Content.
    pub text: String,
}

/// All text files that git knows or would add.
#[derive(Debug, Default)]
pub struct Tree {
    /// Sorted by path.
    pub files: Vec<File>,
    /// Every path, binary files too.
    pub paths: Vec<String>,
}

impl Tree {
    /// Reads the working tree at `root`.
    pub fn load(root: &Path) -> Result<Tree> {
        let output = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("run git ls-files")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "git ls-files: {}", said.lines().next().unwrap_or("failed"));
        let mut tree = Tree::default();
        for path in String::from_utf8_lossy(&output.stdout).lines() {
            let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
            tree.paths.push(path.to_string());
            if path.starts_with("fuzz/corpus/") {
                continue;
            }
            if let Ok(text) = String::from_utf8(bytes) {
                tree.files.push(File { path: path.to_string(), text });
            }
        }
        Ok(tree)
    }

    /// Rust sources.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.path.ends_with(".rs"))
    }

    /// A tree for tests.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Tree {
        Tree {
            files: files.iter().map(|(p, t)| File { path: p.to_string(), text: t.to_string() }).collect(),
            paths: files.iter().map(|(p, _)| p.to_string()).collect(),
        }
    }
}
