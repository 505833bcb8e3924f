//! `mesh-agent cleanup`: takes from a node what an agent leaves there on purpose, so that its successor can go on: the CNI plugin, programs and their
//! pins, sockets, its cgroup. Run when the mesh is uninstalled, by a pod that `meshctl uninstall` makes, or by hand. Called by [`super`]; an agent that still runs is not
//! disturbed, and what is gone already is no error.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::uninstall::uninstall;
use super::{EXIT_SYSTEM, Refusal, complain, privilege};
use crate::bpf::{Kernel, KernelConfig};
use crate::config::{Flags, Traces};
use crate::keeper::lock;

/// Cleans; returns the exit status.
pub fn main(flags: &Flags) -> i32 {
    let traces = match flags.traces(&|name| std::env::var_os(name)) {
        Ok(traces) => traces,
        Err(problems) => {
            problems.lines.iter().for_each(|line| complain(line));
            return problems.status;
        }
    };
    let lacking = privilege::missing().map(|line| Refusal { status: privilege::EXIT_PERMISSION, line });
    let result = lacking.map_or_else(|| clean(&traces), Err);
    result.map_or_else(
        |refusal| {
            complain(&refusal.line);
            refusal.status
        },
        |()| 0,
    )
}

fn clean(traces: &Traces) -> Result<(), Refusal> {
    // First, while there may still be an agent: without the entry in the chain no new pod waits for one.
    uninstall(&traces.cni).map_err(|line| Refusal { status: EXIT_SYSTEM, line })?;
    // An agent of the same instance keeps this lock, or the kernel's.
    let lock = traces.run_dir.exists().then(|| lock::acquire(&traces.run_dir)).transpose()?;
    let config = KernelConfig { bpffs: traces.bpffs.clone(), ..KernelConfig::new(traces.instance.clone(), "", "") };
    Kernel::uninstall(&config, Some(&traces.netns))?;
    let failed = |what: String| move |error: io::Error| Refusal::new(EXIT_SYSTEM, &what, &error);
    remove_sockets(&traces.run_dir).map_err(failed(format!("sockets in {}", traces.run_dir.display())))?;
    // Whoever comes next makes it anew.
    match lock.map(|_held| fs::remove_file(traces.run_dir.join(lock::FILE))) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(format!("the lock in {}", traces.run_dir.display()))(error));
        }
        _ => {}
    }
    // Folders that others use, that are mounted, or in which something is left that is not ours, stay.
    for folder in [&traces.run_dir, &traces.bpffs].into_iter().chain(&traces.agent_cgroup) {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Only sockets: whatever else is in the folder was not put there by an agent.
fn remove_sockets(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_go_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(folder.path().join("enrol.sock")).unwrap();
        fs::write(folder.path().join("notes"), "of somebody").unwrap();
        remove_sockets(folder.path()).unwrap();
        remove_sockets(&folder.path().join("gone")).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
    }
}
