//! Gateways of the Gateway API beside the other objects: whose they are, and whether they may show the certificates that they name. Secrets are not read
//! here, so whether one is there is not known.

use super::backends::{is_granted, not_granted};
use super::findings::{Findings, Flaw};
use super::hosts::Hosts;
use super::parents::Owner;
use crate::diagnosis::{Problem, closest};
use crate::resource::routing::Routes;
use crate::resource::routing::gateway::Listener;
use crate::resource::{Key, Kind};

/// Tells them what does not fit together.
pub fn check(routes: &Routes, hosts: &Hosts<'_>, findings: &mut Findings) {
    for (name, gateway) in &routes.gateways {
        let key = Key { kind: Kind::Gateway, namespace: name.namespace.clone(), name: name.name.clone() };
        let class = gateway.spec.gateway_class_name.as_str();
        if hosts.is_unheard(Kind::GatewayClass) {
            findings.add(&key, Flaw::Unknown);
            continue;
        }
        let owner = hosts.owner(gateway);
        if owner == Owner::Nobody {
            let known: Vec<&str> = routes.gateway_classes.keys().map(|class| &*class.name).collect();
            let ours = ["undermesh", "undermesh-waypoint"];
            let help =
                closest(class, &[known.as_slice(), &ours].concat()).map(|meant| format!("did you mean `{meant}`?"));
            let problem = Problem::warning("spec.gatewayClassName", format!("there is no GatewayClass {class:?}"));
            findings.add(&key, problem.help(help.unwrap_or_else(|| "nobody makes this gateway".into())));
        }
        if !matches!(owner, Owner::Ours(_)) {
            continue;
        }
        certificates(&key, &gateway.spec.listeners, routes, hosts, findings);
    }
}

/// Tells an object of certificates that its listeners may not show.
pub(super) fn certificates(
    key: &Key,
    listeners: &[Listener],
    routes: &Routes,
    hosts: &Hosts<'_>,
    findings: &mut Findings,
) {
    for (at, listener) in listeners.iter().enumerate() {
        let references = listener.tls.iter().flat_map(|tls| tls.certificate_refs.iter().enumerate());
        for (index, reference) in references {
            let field = format!("spec.listeners[{at}].tls.certificateRefs[{index}]");
            let group = reference.group.as_deref().unwrap_or_default();
            let kind = reference.kind.as_deref().unwrap_or("Secret");
            let namespace = reference.namespace.as_deref().unwrap_or(&key.namespace);
            let target = (group, kind, namespace, reference.name.as_str());
            if (group, kind) != ("", "Secret") {
                let problem = Problem::error(field, format!("a {kind} is no certificate"));
                findings.add(key, problem.help("name a Secret of type kubernetes.io/tls"));
            } else if namespace != &*key.namespace && !is_granted(routes, key, target) {
                if hosts.is_unheard(Kind::ReferenceGrant) {
                    findings.add(key, Flaw::Unknown);
                    continue;
                }
                let (message, help) = not_granted(key, target, hosts);
                findings.add(key, Problem::error(field, message).help(help));
            }
        }
    }
}
