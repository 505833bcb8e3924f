//! `lab init`: waits until its standard input closes, then removes what the lab made. See `harness::spawner`.
use crate::harness::cgroup;
use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs to the end of the lab.
pub fn run(cgroup_path: &Path, dir: &Path) -> Result<()> {
    let mut stdin = std::io::stdin();
    loop {
        let ready = poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], PollTimeout::from(200u8));
        reap();
        if matches!(ready, Ok(n) if n > 0) && matches!(stdin.read(&mut [0; 16]), Ok(0) | Err(_)) {
            break;
        }
    }
    let start = Instant::now();
    loop {
        let members = cgroup::members(cgroup_path);
        if members.is_empty() || start.elapsed() > Duration::from_secs(5) {
            break;
        }
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        reap();
        std::thread::sleep(Duration::from_millis(5));
    }
    while cgroup_path.exists() && start.elapsed() < Duration::from_secs(10) {
        if cgroup::remove(cgroup_path).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status.pid().is_none() {
            break;
        }
    }
}
