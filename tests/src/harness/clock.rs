//! The wall clocks of the product's processes, which a test may set. Debug builds look at them, release builds do not.
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The clock of one node, or of the control plane.
#[derive(Clone, Debug)]
pub struct Clock(PathBuf);

impl Clock {
    pub(super) fn create(dir: &Path, whose: &str) -> Clock {
        Clock(dir.join(format!("clock-{whose}")))
    }

    /// The environment variable that makes a process look at it.
    pub(super) fn variable(&self) -> (&'static str, String) {
        ("UNDERMESH_TEST_CLOCK", self.0.to_string_lossy().into_owned())
    }

    /// `+SECONDS` ahead, `-SECONDS` behind, or `@SECONDS` since 1970 and standing still.
    pub fn set(&self, shows: &str) -> Result<()> {
        let partial = self.0.with_extension("partial");
        std::fs::write(&partial, shows).context("write a clock")?;
        std::fs::rename(&partial, &self.0).context("set a clock")
    }

    /// Shows the right time again.
    pub fn set_right(&self) -> Result<()> {
        std::fs::remove_file(&self.0).context("set a clock right")
    }
}
