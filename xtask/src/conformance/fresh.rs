//! A cluster for one run, with the mesh as this tree makes it: up, installed, and taken down whatever came of the run. Called by [`super`].
use crate::run;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;

/// It ends with this.
pub struct Fresh(u8);

impl Fresh {
    /// Starts it, makes the images of debug binaries, and installs.
    pub fn up(cluster: u8) -> Result<Fresh> {
        own(&["cluster", "up"], cluster)?;
        let fresh = Fresh(cluster);
        let made = command(&["image"], cluster)?.output().context("start the making of images")?;
        ensure!(made.status.success(), "image: {}", String::from_utf8_lossy(&made.stderr));
        for line in String::from_utf8_lossy(&made.stdout).lines() {
            let archive = line.split(' ').next().unwrap_or_default();
            own(&["cluster", "load", archive], cluster)?;
        }
        let values = command(&["cluster", "values"], cluster)?.output().context("ask for the cluster's values")?;
        ensure!(values.status.success(), "values: {}", String::from_utf8_lossy(&values.stderr));
        let file = run::binary_dir("")?.join(format!("cluster{cluster}/values.yaml"));
        fs::write(&file, values.stdout).with_context(|| format!("write {}", file.display()))?;
        own(&["cluster", "meshctl", "install", "-f", &file.to_string_lossy()], cluster)?;
        Ok(fresh)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(error) = own(&["cluster", "down"], self.0) {
            eprintln!("cluster {} is not down: {error:#}", self.0);
        }
    }
}

fn own(words: &[&str], cluster: u8) -> Result<()> {
    run::check(&mut command(words, cluster)?)
}

fn command(words: &[&str], cluster: u8) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find own binary")?);
    command.args(words).env("UNDERMESH_CLUSTER", cluster.to_string());
    Ok(command)
}
