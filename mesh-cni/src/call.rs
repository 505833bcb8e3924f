//! What the runtime asks for: the environment that the CNI specification names. Pure; called by `run`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::refusal::{Code, Refusal};

/// The operations of the specification.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// A pod's network was made.
    Add,
    /// Is it still as it was made?
    Check,
    /// A pod's network goes.
    Del,
    /// These attachments are all that there are.
    Gc,
    /// Could a pod be added?
    Status,
    /// Which versions are spoken?
    Version,
}

/// A pod, as the kubelet's runtime names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; old runtimes give none.
    pub uid: Option<String>,
}

/// One call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// What is asked for.
    pub command: Command,
    /// The sandbox.
    pub container: String,
    /// Its network namespace; a Del may come without.
    pub netns: Option<PathBuf>,
    /// None for a container that is no pod.
    pub pod: Option<Pod>,
}

impl Call {
    /// Reads the environment.
    pub fn read(environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Call, Refusal> {
        let wrong = |message: String| Refusal::new(Code::Environment, message);
        let text = |name: &str| match environment(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(wrong(format!("{name} is not UTF-8"))),
        };
        let needed =
            |name: &str| text(name)?.ok_or_else(|| wrong(format!("{name} is missing: a container runtime sets it")));
        let command = match needed("CNI_COMMAND")?.as_str() {
            "ADD" => Command::Add,
            "CHECK" => Command::Check,
            "DEL" => Command::Del,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            other => return Err(wrong(format!("CNI_COMMAND is {other:?}"))),
        };
        let mut call = Call { command, container: String::new(), netns: None, pod: None };
        if matches!(command, Command::Gc | Command::Status | Command::Version) {
            return Ok(call);
        }
        call.container = needed("CNI_CONTAINERID")?;
        needed("CNI_IFNAME")?;
        call.netns = match command {
            Command::Del => text("CNI_NETNS")?.map(PathBuf::from),
            _ => Some(needed("CNI_NETNS")?.into()),
        };
        call.pod = pod(&text("CNI_ARGS")?.unwrap_or_default());
        Ok(call)
    }
}

/// Reads `KEY=VALUE;KEY=VALUE`.
fn pod(arguments: &str) -> Option<Pod> {
    let value = |key: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned())
    };
    let (namespace, name) = (value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some(Pod { namespace, name, uid: value("K8S_POD_UID") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0f;K8S_POD_UID=2c48";

    fn read(variables: &[(&str, &str)]) -> Result<Call, Refusal> {
        Call::read(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value)))
    }

    #[test]
    fn who_is_meant() {
        let pod_of = |uid: Option<&str>| {
            Some(Pod { namespace: "shop".into(), name: "web-0".into(), uid: uid.map(str::to_owned) })
        };
        let rows = [
            (POD, pod_of(Some("2c48"))),
            ("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0", pod_of(None)),
            ("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=", pod_of(None)),
            ("K8S_POD_NAMESPACE=shop", None),
            ("garbage;;=;", None),
            ("", None),
        ];
        for (arguments, expected) in rows {
            let variables = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "0f"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", "/run/netns/a"),
                ("CNI_ARGS", arguments),
            ];
            assert_eq!(read(&variables).unwrap().pod, expected, "{arguments}");
        }
    }

    #[test]
    fn hardening_B138_what_must_be_there() {
        let all = [("CNI_CONTAINERID", "0f"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/a")];
        let rows: [(&str, &[&str]); 6] = [
            ("ADD", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
            ("GC", &[]),
            ("STATUS", &[]),
            ("VERSION", &[]),
        ];
        for (command, needed) in rows {
            for left_out in all.map(|(name, _)| name) {
                let mut variables = vec![("CNI_COMMAND", command)];
                variables.extend(all.iter().filter(|(name, _)| *name != left_out));
                let result = read(&variables);
                assert_eq!(result.is_err(), needed.contains(&left_out), "{command} without {left_out}: {result:?}");
            }
        }
        for variables in [&[][..], &[("CNI_COMMAND", "")], &[("CNI_COMMAND", "add")], &[("CNI_COMMAND", "REBOOT")]] {
            assert_eq!(read(variables).unwrap_err().code, Code::Environment, "{variables:?}");
        }
    }
}
