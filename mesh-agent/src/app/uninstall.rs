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
    let CniFlags { run_dir, cni_bin_dir, cni_conf_dir, cni_state_dir, cni_cache_dir } = flags;
    let socket = run_dir.join(admin::SOCKET);
    match order(&socket) {
        Ok(answer) => match status(&answer) {
            "200" => return Ok("the agent took the CNI plugin off this node"),
            // An agent that does not keep a plugin does not put one back.
            "404" => {}
            _ => return Err(format!("the agent: {}", answer.trim())),
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(format!("{}: {error}", socket.display())),
    }
    remove(&Places {
        plugin: Default::default(),
        bin_dir: cni_bin_dir.clone(),
        conf_dir: cni_conf_dir.clone(),
        socket: run_dir.join(SOCKET),
        scope: scope_file(cni_state_dir),
        own_file: false,
        cache: cni_cache_dir.clone(),
    })?;
    Ok("the CNI plugin is off this node")
}

/// The status of an answer: what it says further down may have any number in it.
fn status(answer: &str) -> &str {
    answer.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default()
}

/// The agent's answer.
fn order(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let header = admin::ORDER_HEADER;
    write!(
        stream,
        "POST /cni-uninstall HTTP/1.1\r\nhost: localhost\r\n{header}: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_failed_has_not_taken_the_plugin_off_whatever_it_says() {
        let rows = [
            ("HTTP/1.1 200 OK\r\n\r\n", "200"),
            ("HTTP/1.1 500 Internal Server Error\r\n\r\n/etc/cni/net.d: more than 200 files\n", "500"),
            ("HTTP/1.1 500 Internal Server Error\r\n\r\n 404 \n", "500"),
            ("HTTP/1.1", ""),
            ("", ""),
        ];
        for (answer, expected) in rows {
            assert_eq!(status(answer), expected, "{answer:?}");
        }
    }
}
