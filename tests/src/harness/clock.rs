//! The wall clocks of the product's processes, which a test may set. Debug builds look at them, release builds do not.
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The name of the clock of all.
const ALL: &str = "clock";

/// The clock of one node or of the control plane, which shows what the clock of all shows until it is set; or the clock of all.
#[derive(Clone, Debug)]
pub struct Clock(PathBuf);

impl Clock {
    pub(super) fn of_all(dir: &Path) -> Clock {
        Clock(dir.join(ALL))
    }

    pub(super) fn create(dir: &Path, whose: &str) -> Result<Clock> {
        let clock = Clock(dir.join(format!("{ALL}-{whose}")));
        clock.set_right()?;
        Ok(clock)
    }

    /// The environment variable that makes a process look at it.
    pub(super) fn variable(&self) -> (&'static str, String) {
        ("UNDERMESH_TEST_CLOCK", self.0.to_string_lossy().into_owned())
    }

    /// `+SECONDS` ahead, `-SECONDS` behind, or `@SECONDS` since 1970 and standing still; for all who look at it at the same moment.
    pub fn set(&self, shows: &str) -> Result<()> {
        let partial = self.0.with_extension("partial");
        std::fs::write(&partial, shows).context("write a clock")?;
        std::fs::rename(&partial, &self.0).context("set a clock")
    }

    /// Shows the right time again, or what the clock of all shows.
    pub fn set_right(&self) -> Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("set a clock right"),
            _ => {}
        }
        match self.0.file_name() {
            Some(name) if name == ALL => Ok(()),
            _ => symlink(ALL, &self.0).context("make a clock"),
        }
    }
}
