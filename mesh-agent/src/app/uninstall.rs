//! `mesh-agent cni-uninstall`: takes the plugin off a node. An agent that runs is asked to do it, for it would put the entry back; without one it is
//! done here. Called by [`super`].

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::admin;
use crate::cni::{Places, SOCKET, remove, scope_file};

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the plugin off; says who did it.
pub fn uninstall(run_dir: &Path, bin_dir: &Path, conf_dir: &Path, state_dir: &Path) -> Result<&'static str, String> {
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
        bin_dir: bin_dir.to_owned(),
        conf_dir: conf_dir.to_owned(),
        socket: run_dir.join(SOCKET),
        scope: scope_file(state_dir),
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
