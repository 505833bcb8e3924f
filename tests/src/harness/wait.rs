//! Waiting for a condition with a deadline: the only way a test waits.
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(10);

/// Asks `condition` until it gives a value; the last reason it gave is in the error when `limit` has passed.
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(e) if start.elapsed() >= limit => bail!("{what}: not within {limit:?}: {e:#}"),
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// `eventually` for a yes-or-no question.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(what, limit, || if condition() { Ok(()) } else { bail!("still not so") })
}
