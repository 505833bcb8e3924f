//! The network configuration that a runtime writes to the plugin's standard input. Pure; called by `call` and `run`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh_proto::convert::CniDns;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::refusal::{Code, Refusal};

/// What we speak: chains exist since 0.3.0.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What is said to who names no version that we speak.
const NEWEST: &str = "1.1.0";
/// The longest wait that makes sense: runtimes end the plugin after two minutes or more.
const LONGEST_WAIT: u64 = 100;

/// The plugin's own part of the configuration, and what the runtime adds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of this configuration.
    #[serde(default)]
    pub cni_version: String,
    /// The agent's socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// The file that tells who is in the mesh while the agent is away.
    #[serde(default = "scope")]
    pub scope: PathBuf,
    /// Namespaces that are never in the mesh.
    #[serde(default)]
    pub exempt: Vec<String>,
    #[serde(default = "wait")]
    wait_seconds: u64,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    /// What the plugins before this one made; passed on as it is.
    #[serde(default)]
    pub prev_result: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default)]
    dns: Option<Dns>,
}

/// Containerd writes the names as its language has them, and some runtimes null for none.
#[derive(Debug, Deserialize)]
struct Dns {
    #[serde(default, alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(default, alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(default, alias = "Options")]
    options: Option<Vec<String>>,
}

fn socket() -> PathBuf {
    "/run/undermesh/cni.sock".into()
}

fn scope() -> PathBuf {
    "/var/lib/undermesh/scope.json".into()
}

fn wait() -> u64 {
    30
}

impl Config {
    /// Reads it.
    pub fn read(bytes: &[u8]) -> Result<Config, Refusal> {
        let config: Config = serde_json::from_slice(bytes)
            .map_err(|error| Refusal::new(Code::Decode, format!("cannot read the configuration: {error}")))?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            let text = format!("cniVersion is {:?}, supported are {}", config.cni_version, VERSIONS.join(", "));
            return Err(Refusal::new(Code::Version, text));
        }
        Ok(config)
    }

    /// How long a pod is held in one call.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_seconds.min(LONGEST_WAIT))
    }

    /// What the runtime will write into the pod's resolv.conf, if it tells.
    pub fn dns(&self) -> Option<CniDns> {
        let dns = self.runtime_config.dns.as_ref()?;
        let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        Some(CniDns { servers: words(&dns.servers), searches: words(&dns.searches), options: words(&dns.options) })
    }

    /// The result of the plugins before this one.
    pub fn result(&self) -> Result<&Value, Refusal> {
        let missing =
            "there is no prevResult: undermesh-cni makes no network, its place is behind the plugin that does";
        self.prev_result.as_ref().ok_or_else(|| Refusal::new(Code::Config, missing))
    }
}

/// The version to answer in.
pub fn version_of(bytes: &[u8]) -> String {
    let given: Option<Value> = serde_json::from_slice(bytes).ok();
    let version = given.as_ref().and_then(|given| given["cniVersion"].as_str());
    version.filter(|version| VERSIONS.contains(version)).unwrap_or(NEWEST).to_owned()
}

/// The answer to VERSION.
pub fn versions(bytes: &[u8]) -> String {
    json!({ "cniVersion": version_of(bytes), "supportedVersions": VERSIONS }).to_string()
}

/// The pod's addresses in a result: the first of each family that is on an interface of the pod.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>, Refusal> {
    let wrong = |what: String| Refusal::new(Code::Decode, format!("prevResult: {what}"));
    let interfaces = result["interfaces"].as_array().map_or(&[][..], Vec::as_slice);
    let mut found: Vec<IpAddr> = Vec::new();
    for entry in result["ips"].as_array().into_iter().flatten() {
        // An interface without a sandbox is one of the node's.
        let outside = entry["interface"].as_u64().and_then(|at| interfaces.get(usize::try_from(at).ok()?));
        if outside.is_some_and(|interface| interface["sandbox"].as_str().is_none_or(str::is_empty)) {
            continue;
        }
        let text = entry["address"].as_str().ok_or_else(|| wrong("an address is missing".to_owned()))?;
        let ip: IpAddr = text
            .split_once('/')
            .map_or(text, |(ip, _)| ip)
            .parse()
            .map_err(|_| wrong(format!("{text:?} is not an address")))?;
        if !found.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            found.push(ip);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_a_pod() {
        let rows: [(Value, Result<Vec<&str>, Code>); 8] = [
            (
                json!({
                    "interfaces": [
                        { "name": "cni0" }, { "name": "veth1" }, { "name": "eth0", "sandbox": "/run/netns/a" },
                    ],
                    "ips": [
                        { "address": "198.18.1.1/24", "interface": 0 },
                        { "address": "198.18.1.7/24", "interface": 2, "gateway": "198.18.1.1" },
                        { "address": "fd00:198::7/64", "interface": 2 },
                        { "address": "198.18.1.8/24", "interface": 2 },
                    ],
                }),
                Ok(vec!["198.18.1.7", "fd00:198::7"]),
            ),
            (json!({ "ips": [{ "version": "4", "address": "198.18.1.7/24" }] }), Ok(vec!["198.18.1.7"])),
            (json!({ "ips": [{ "address": "198.18.1.7/24", "interface": 9 }] }), Ok(vec!["198.18.1.7"])),
            (json!({ "ips": [{ "address": "198.18.1.7/24", "interface": -1 }] }), Ok(vec!["198.18.1.7"])),
            (json!({}), Ok(vec![])),
            (json!({ "ips": "none" }), Ok(vec![])),
            (json!({ "ips": [{}] }), Err(Code::Decode)),
            (json!({ "ips": [{ "address": "198.18.1.256/24" }] }), Err(Code::Decode)),
        ];
        for (result, expected) in rows {
            let found = addresses(&result).map_err(|refusal| refusal.code);
            let expected = expected.map(|ips| ips.into_iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>());
            assert_eq!(found, expected, "{result}");
        }
    }

    #[test]
    fn defaults_and_what_the_runtime_adds() {
        let config = Config::read(br#"{"cniVersion":"1.0.0","name":"pods","type":"undermesh-cni"}"#).unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/undermesh/cni.sock"));
        assert_eq!((config.wait(), config.dns()), (Duration::from_secs(30), None));
        assert_eq!(config.result().unwrap_err().code, Code::Config);
        let text = br#"{"cniVersion":"0.3.1","waitSeconds":100000,"prevResult":{"x":1},
                        "runtimeConfig":{"dns":{"servers":["198.19.0.10"],"searches":null,"options":["ndots:5"]}}}"#;
        let config = Config::read(text).unwrap();
        assert_eq!((config.wait(), config.result().unwrap()), (Duration::from_secs(100), &json!({ "x": 1 })));
        let dns = CniDns { servers: vec!["198.19.0.10".into()], searches: vec![], options: vec!["ndots:5".into()] };
        assert_eq!(config.dns(), Some(dns.clone()));
        let containerd = br#"{"cniVersion":"1.0.0","runtimeConfig":{"dns":{"Servers":["198.19.0.10"],"Searches":[],"Options":["ndots:5"]}}}"#;
        assert_eq!(Config::read(containerd).unwrap().dns(), Some(dns));
    }

    #[test]
    fn hardening_B138_garbage_and_foreign_versions() {
        let rows: [(&[u8], Code, &str); 7] = [
            (b"", Code::Decode, NEWEST),
            (b"\xff\xfe", Code::Decode, NEWEST),
            (b"[]", Code::Version, NEWEST),
            (br#"{"cniVersion":"0.4.0","socket":7}"#, Code::Decode, "0.4.0"),
            (br#"{"cniVersion":"9.0.0"}"#, Code::Version, NEWEST),
            (br#"{"cniVersion":"0.2.0"}"#, Code::Version, NEWEST),
            (br#"{}"#, Code::Version, NEWEST),
        ];
        for (bytes, code, version) in rows {
            assert_eq!(Config::read(bytes).unwrap_err().code, code, "{}", String::from_utf8_lossy(bytes));
            assert_eq!(version_of(bytes), version);
        }
        assert!(versions(br#"{"cniVersion":"0.4.0"}"#).contains(r#""cniVersion":"0.4.0""#));
    }
}
