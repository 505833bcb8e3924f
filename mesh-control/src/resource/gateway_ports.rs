//! The annotation of a Gateway that says which ports of its Service lead to other ports of its pods, as those of Istio's ingress gateway do: clients come to port
//! 80, and samples ask for 8080, where its pods listen. Read by `deploy`, which makes the Service, and by `index::l7::listeners`, which listens. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::ports;

use super::{Labels, meta};
use crate::diagnosis::Problem;

/// On a gateway: `NAME=PORT:TARGET`, separated by commas.
pub const SERVICE_PORTS: &str = "undermesh.io/service-ports";
/// Ports that one Gateway may name.
const MOST: usize = 64;

/// Ports of TCP of a gateway's Service, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayPorts(BTreeMap<u16, GatewayPort>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPort {
    /// What the Service calls it.
    pub name: String,
    /// The port of the pods.
    pub target: u16,
}

impl GatewayPorts {
    /// What a Gateway says. What cannot be read moves nothing, and is told.
    pub fn of(marks: &Labels, problems: &mut Vec<Problem>) -> Self {
        let Some(text) = marks.get(SERVICE_PORTS).filter(|text| !text.trim().is_empty()) else {
            return Self::default();
        };
        read(text).unwrap_or_else(|why| {
            let problem = Problem::error(format!("metadata.annotations[\"{SERVICE_PORTS}\"]"), why);
            problems.push(problem.help(
                "write NAME=PORT:TARGET, separated by commas, as http2=80:8080; until then nothing of it counts",
            ));
            Self::default()
        })
    }

    /// The port of the pods to which connections come that ask for `port`.
    pub fn target(&self, port: u16) -> u16 {
        self.0.get(&port).map_or(port, |one| one.target)
    }

    /// Whether another port of the Service leads to this one of the pods, which then needs none of its own number.
    pub fn is_target(&self, port: u16) -> bool {
        self.0.values().any(|one| one.target == port)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &GatewayPort)> {
        self.0.iter().map(|(port, one)| (*port, one))
    }
}

fn read(text: &str) -> Result<GatewayPorts, String> {
    let (mut all, mut names) = (BTreeMap::new(), BTreeSet::new());
    for part in text.split(',').map(str::trim) {
        let wrong = |why: &str| format!("{part:?}: {why}");
        let (name, numbers) = part.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let (port, target) = numbers.split_once(':').ok_or_else(|| wrong("there is no `:`"))?;
        if !is_port_name(name) {
            return Err(wrong("no port can be called so"));
        }
        let [port, target] = [port, target].map(|number| number.parse::<u16>().ok().filter(|number| *number != 0));
        let (port, target) = port.zip(target).ok_or_else(|| wrong("a port is a number of 1 to 65535"))?;
        let is_ours = |port| ports::is_mesh_port(port) || [ports::METRICS, ports::READINESS].contains(&port);
        if is_ours(port) || is_ours(target) {
            return Err(wrong("that port is one of the mesh's own"));
        }
        if all.len() >= MOST {
            return Err(format!("these are more than {MOST}"));
        }
        if !names.insert(name) || all.insert(port, GatewayPort { name: name.to_owned(), target }).is_some() {
            return Err(wrong("name and number must be no other port's"));
        }
    }
    Ok(GatewayPorts(all))
}

/// As Kubernetes has it for ports of Services, of which readiness is always one.
fn is_port_name(name: &str) -> bool {
    meta::label(name).is_ok()
        && name != "status-port"
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (GatewayPorts, Vec<Problem>) {
        let mut problems = Vec::new();
        let marks = Labels::from([(SERVICE_PORTS.to_owned(), text.to_owned())]);
        (GatewayPorts::of(&marks, &mut problems), problems)
    }

    #[test]
    fn ports_of_the_service_lead_where_the_gateway_says() {
        let (ports, problems) = of("http2=80:8080, https=443:8443");
        assert!(problems.is_empty(), "{problems:?}");
        let all: Vec<_> = ports.iter().map(|(port, one)| (port, one.name.as_str(), one.target)).collect();
        assert_eq!(all, [(80, "http2", 8080), (443, "https", 8443)]);
        assert_eq!([80, 443, 8080, 9000].map(|port| ports.target(port)), [8080, 8443, 8080, 9000]);
        assert_eq!([80, 8080, 9000].map(|port| ports.is_target(port)), [false, true, false]);
        assert_eq!(of(" "), (GatewayPorts::default(), Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_moves_nothing_and_is_told() {
        for text in [
            "80:8080",
            "http2=80",
            "http2=0:8080",
            "http2=80:x",
            "http2=80:70000",
            "=80:8080",
            "Http=80:8080",
            "a.b=80:8080",
            "status-port=80:8080",
            "a=80:15008",
            "a=15021:8080",
            "a=80:8080,a=81:8081",
            "a=80:8080,b=80:8081",
            "a=80:8080,",
            &(1..=65).map(|n| format!("p{n}={n}:{n}")).collect::<Vec<_>>().join(","),
        ] {
            let (ports, problems) = of(text);
            assert_eq!((ports, problems.len()), (GatewayPorts::default(), 1), "{text}");
        }
    }
}
