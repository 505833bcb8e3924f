//! The kernel side of the agent: loads and adopts the programs, keeps their maps in step with the enrolled pods, answers what they wrote.
//!
//! Enrolment calls [`Kernel::enrol`] and [`Kernel::remove`]; the proxy asks [`Kernel::original_destination`] and tells
//! [`Kernel::set_client`]; telemetry reads counters, map usage and events. Only this module uses aya.
//!
//! ```text
//!  /sys/fs/bpf/undermesh/<instance>/v<ABI>/maps/<MAP>          shared by all programs
//!                                         /links/<program>     hooks on the pods' and the agent's cgroup
//!                                         /pods/<cookie>/      link and LISTENERS of the pod's sk_lookup program
//! ```
//!
//! Invariants: the agent's death changes nothing here (pins stay); a pod whose listeners are gone is refused, never passed; no
//! program attaches to the root cgroup or to a device.

mod collect;
mod config;
mod events;
mod forbidden;
mod foreign;
mod inbound;
mod kernel;
mod kubelet;
mod links;
mod log;
mod netns;
mod object;
mod pins;
mod pods;
mod probe;
mod registry;
mod rules;
mod selftest;
mod sys;
mod tables;

pub use config::{Foreign, InboundMode, KernelConfig, KernelError, Limits, PodListenerFds, PodSpec, Repair};
pub use events::Events;
pub use kernel::Kernel;
pub use netns::netns_cookie;
