//! One proxy's lines, however it is reached: by a command in its pod, or by its socket on this machine. All are read side by side; whoever breaks off ends alone.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_runtime::tap::client::{self, EXIT_BUSY, EXIT_SELECTOR, Lines};
use tokio::sync::mpsc;

use super::find::Proxy;
use crate::api::Api;
use crate::exec::{Exec, Said};

/// A line that is longer than this is none of a proxy's.
const LONGEST: usize = 64 * 1024;
/// What a command says of why it has failed: more is not shown.
const LONGEST_ERROR: usize = 4096;
/// A proxy says something every six seconds. After so long without a word it is taken for dead.
const SILENT: Duration = Duration::from_secs(30);

/// How a proxy is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// In its pod.
    Pod(Proxy),
    /// By a socket.
    Socket(PathBuf),
}

impl Way {
    /// How it is called until it says so itself.
    pub fn name(&self) -> String {
        match self {
            Way::Pod(proxy) => proxy.name.clone(),
            Way::Socket(path) => path.display().to_string(),
        }
    }
}

/// What comes of a proxy.
#[derive(Debug)]
pub enum Event {
    /// A line.
    Line(String),
    /// No more; the error says why, if it should have gone on.
    End(Result<(), String>),
}

/// Reads all of one proxy. Whoever takes the events may be slow: then so is the proxy's client, which the proxy counts.
pub async fn follow(api: Option<&Api>, way: &Way, query: &str, number: usize, events: mpsc::Sender<(usize, Event)>) {
    let mut source = match begin(api, way, query).await {
        Ok(source) => source,
        Err(why) => return drop(events.send((number, Event::End(Err(why)))).await),
    };
    let mut rest = BytesMut::new();
    let ended = loop {
        let piece = match tokio::time::timeout(SILENT, source.next()).await {
            Err(_) => break Err(format!("nothing was heard of it for {} s", SILENT.as_secs())),
            Ok(Err(why)) => break Err(why),
            Ok(Ok(None)) => break Ok(()),
            Ok(Ok(Some(piece))) => piece,
        };
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest.split_to(end + 1)).trim_end().to_owned();
            if events.send((number, Event::Line(line))).await.is_err() {
                return;
            }
        }
        if rest.len() > LONGEST {
            break Err("it does not speak as a tap does".to_owned());
        }
    };
    let _ = events.send((number, Event::End(ended))).await;
}

async fn begin(api: Option<&Api>, way: &Way, query: &str) -> Result<Source, String> {
    match (way, api) {
        (Way::Socket(path), _) => client::ask(path, query).await.map(Source::Socket).map_err(|refused| refused.why),
        (Way::Pod(_), None) => Err("nobody says how the cluster is reached".to_owned()),
        (Way::Pod(proxy), Some(api)) => {
            let mut command = proxy.command.clone();
            command.push(query.to_owned());
            let begun = Exec::begin(api, &proxy.namespace, &proxy.pod, &proxy.container, &command).await;
            let exec = begun.map_err(|failure| match failure.code {
                403 => format!(
                    "{failure}; who taps needs the rights to get and create pods/exec in namespace {}",
                    proxy.namespace
                ),
                _ => failure.why,
            })?;
            Ok(Source::Pod { exec, said: Vec::new() })
        }
    }
}

enum Source {
    Pod { exec: Exec, said: Vec<u8> },
    Socket(Lines),
}

impl Source {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let (exec, said) = match self {
            Source::Socket(lines) => return Ok(lines.next().await),
            Source::Pod { exec, said } => (exec, said),
        };
        loop {
            match exec.next().await? {
                None => return Ok(None),
                Some(Said::Out(bytes)) => return Ok(Some(bytes)),
                Some(Said::Err(bytes)) => {
                    let room = LONGEST_ERROR.saturating_sub(said.len());
                    said.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Some(Said::Ended(ended)) => return outcome(ended, said).map(|()| None),
            }
        }
    }
}

/// What it means that the command has ended so.
fn outcome(ended: Result<i32, String>, said: &[u8]) -> Result<(), String> {
    let said = String::from_utf8_lossy(said).trim().replace('\n', " ");
    match ended {
        Ok(0) => Ok(()),
        // A program that does not know the word complains of its command line.
        Ok(64) => Err("the proxy is too old for taps: upgrade it".to_owned()),
        Ok(EXIT_SELECTOR | EXIT_BUSY) if !said.is_empty() => Err(said),
        Ok(code) if said.is_empty() => Err(format!("the tap ended with status {code}")),
        Ok(code) => Err(format!("{said} (status {code})")),
        Err(why) if why.contains("no such file") || why.contains("not found") => {
            Err(format!("the proxy is too old for taps, or none of ours: {why}"))
        }
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_tm_16_how_a_tap_ends_in_a_pod_is_told() {
        let old = "the proxy is too old for taps: upgrade it";
        for (ended, said, expected) in [
            (Ok(0), "", Ok(())),
            (Ok(64), "error: unexpected argument 'tap' found", Err(old)),
            (Ok(65), "`code=9`: a code is\n", Err("`code=9`: a code is")),
            (Ok(75), "4 taps are open", Err("4 taps are open")),
            (Ok(69), "no proxy", Err("no proxy (status 69)")),
            (Ok(137), "", Err("the tap ended with status 137")),
            (
                Err("exec: \"/mesh-waypoint\": stat: no such file or directory"),
                "",
                Err(
                    "the proxy is too old for taps, or none of ours: exec: \"/mesh-waypoint\": stat: no such file or directory",
                ),
            ),
            (Err("pod is gone"), "", Err("pod is gone")),
        ] {
            let found = outcome(ended.map_err(str::to_owned), said.as_bytes());
            assert_eq!(found, expected.map_err(str::to_owned), "{said}");
        }
    }
}
