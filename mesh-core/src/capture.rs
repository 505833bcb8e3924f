//! What of a pod's traffic the mesh leaves alone, as the pod's annotations and probes say. Read by the agent's enrolment, carried by mesh-proto,
//! put into rows by the agent's kernel module.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Rules of one pod. The default leaves nothing alone.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct CaptureRules {
    /// Ports on which the node's own kubelet may ask the pod, past all policies.
    pub probe_ports: Vec<u16>,
    /// What comes from the network goes past the agent, but for HBONE.
    pub inbound_open: bool,
    /// Of what comes from the network only these ports are captured.
    pub inbound_only: Option<Vec<u16>>,
    /// Ports of the pod that are not captured; says nothing beside `inbound_only`.
    pub inbound_except: Vec<u16>,
    /// Only connects to these ranges are captured, and to the ports of `outbound_also`.
    pub outbound_only: Option<Vec<IpNet>>,
    /// Ranges to which connects are not captured.
    pub outbound_except: Vec<IpNet>,
    /// Ports to which connects are captured, whatever `outbound_only` says.
    pub outbound_also: Vec<u16>,
    /// Ports to which connects are not captured.
    pub outbound_except_ports: Vec<u16>,
}

impl CaptureRules {
    /// Most ports, and most ranges, that one rule may name.
    pub const MOST: usize = 64;

    /// Whether anything but probes is left alone.
    pub fn excludes(&self) -> bool {
        *self != CaptureRules { probe_ports: self.probe_ports.clone(), ..CaptureRules::default() }
    }
}
