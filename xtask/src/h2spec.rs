//! h2spec, the conformance suite of HTTP/2, built once from its Go module into a folder that is kept. Called by `setup`; the waypoint's test `h2spec` starts it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

/// The newest one that is a Go module; `+incompatible` because it was written before there were any.
const VERSION: &str = "v2.2.1+incompatible";

/// Builds it unless it is there.
pub fn install() -> Result<PathBuf> {
    run::need(&["go"])?;
    let folder = run::cache()?.join("h2spec");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("open the lock")?;
    lock.lock().context("wait for another builder")?;
    let program = folder.join("h2spec");
    let version = folder.join("version");
    if !program.exists() || fs::read_to_string(&version).unwrap_or_default() != VERSION {
        let module = format!("github.com/summerwind/h2spec/cmd/h2spec@{VERSION}");
        let output =
            Command::new("go").env("GOBIN", &folder).args(["install", &module]).output().context("start go")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "go install {module}: {}", said.trim().lines().last().unwrap_or("failed"));
        fs::write(&version, VERSION).context("note the version")?;
    }
    Ok(program)
}
