//! `mesh-agent cni-uninstall`: takes the plugin off a node. An agent that runs is asked to do it, for it would put the entry back; without one it is
//! done here. Called by [`super`].

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::admin;
use crate::cni::{Places, SOCKET, remove, scope_file};
use crate::config::CniFlags;

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the plugin off; says who did it.
pub fn uninstall(flags: &CniFlags) -> Result<&'static str, String> {
    let CniFlags { run_dir, cni_bin_dir, cni_conf_dir, cni_state_dir } = flags;
    let socket = run_dir.join(admin::SOCKET);
    match order(&socket) {
        Ok(status) if status.contains(" 200 ") => return Ok("the agent took the CNI plugin off this node"),
        // An agent that does not keep a plugin does not put one back.
        Ok(status) if status.contains(" 404 ") => {}
        Ok(status) => return Err(format!("the agent: {}", status.trim())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(format!("{}: {error}", socket.display())),
    }
    remove(&Places {
        plugin: Default::default(),
        bin_dir: cni_bin_dir.clone(),
        conf_dir: cni_conf_dir.clone(),
        socket: run_dir.join(SOCKET),
        scope: scope_file(cni_state_dir),
    })?;
    Ok("the CNI plugin is off this node")
}

/// The first line of the agent's answer, and what it says.
fn order(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let header = admin::ORDER_HEADER;
    write!(
        stream,
        "POST /cni-uninstall HTTP/1.1\r\nhost: localhost\r\n{header}: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    Ok(answer)
}
