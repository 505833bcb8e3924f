//! What container runtimes keep of the chain that made a pod's network: CRI-O ends the pod with that very chain, and could not if it named a program that
//! is not there any more. Our entry is taken out of it when the plugin goes. Used by [`super::place`].

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::conflist::TYPE;
use super::folder::{bounded, replace};

/// Takes our entry out of every chain that is kept. A pod that ends meanwhile takes its own away.
pub fn forget(folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(folder, error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let Ok(bytes) = bounded(&path) else { continue };
        let Some(without) = without_us(&bytes) else { continue };
        let mode = fs::metadata(&path).map_or(0o600, |metadata| metadata.mode() & 0o777);
        replace(&path, &without, mode).map_err(|error| failed(&path, error))?;
        tracing::debug!(path = %path.display(), "took our entry out of the chain that made the network of a pod");
    }
    Ok(())
}

/// What is kept without our entry; none if it has none, or is not what the library writes.
fn without_us(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kept: Value = serde_json::from_slice(bytes).ok()?;
    let mut chain: Value = serde_json::from_slice(&STANDARD.decode(kept["config"].as_str()?).ok()?).ok()?;
    let plugins = chain.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != TYPE);
    if plugins.is_empty() || plugins.len() == before {
        return None;
    }
    kept["config"] = STANDARD.encode(chain.to_string()).into();
    Some(kept.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    /// As libcni writes it.
    fn kept(plugins: Value) -> Value {
        let chain = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins });
        json!({
            "kind": "cniCacheV1", "containerId": "0f", "config": STANDARD.encode(chain.to_string()), "ifName": "eth0",
            "networkName": "pods", "cniArgs": [["K8S_POD_NAME", "web"]], "result": { "ips": [{ "address": "198.18.1.7/24" }] },
        })
    }

    #[test]
    fn a_pod_that_outlives_us_can_be_ended_by_the_chain_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let (bridge, ours) = (json!({ "type": "bridge" }), json!({ "type": TYPE, "socket": "/run/u/cni.sock" }));
        let rows = [
            (
                "pods-0-eth0",
                kept(json!([bridge, ours, { "type": "portmap" }])).to_string(),
                Some(json!([bridge, { "type": "portmap" }])),
            ),
            ("pods-1-eth0", kept(json!([bridge])).to_string(), None),
            ("pods-2-eth0", "{".to_owned(), None),
            ("pods-3-eth0", json!({ "kind": "cniCacheV1", "config": "undermesh-cni" }).to_string(), None),
            ("pods-4-eth0", json!({ "cniVersion": "0.3.1", "ips": [] }).to_string(), None),
        ];
        for (name, text, _) in &rows {
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        for _ in 0..2 {
            forget(folder.path()).unwrap();
            for (name, text, expected) in &rows {
                let now = fs::read_to_string(folder.path().join(name)).unwrap();
                match expected {
                    Some(plugins) => {
                        assert_eq!(serde_json::from_str::<Value>(&now).unwrap(), kept(plugins.clone()), "{name}")
                    }
                    None => assert_eq!(now, *text, "{name}"),
                }
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), rows.len());
        assert_eq!(fs::metadata(folder.path().join("pods-0-eth0")).unwrap().mode() & 0o777, 0o600);
        forget(&folder.path().join("gone")).unwrap();
    }
}
