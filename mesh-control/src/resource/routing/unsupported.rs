//! Kinds of Istio that can mean nothing here, because they speak of the inside of a proxy that is not used. They are refused by name: whoever has one must
//! know that it does nothing.

use crate::diagnosis::Problem;
use crate::resource::{Key, Kind, Read, Unreadable};

/// Says why, and what to do instead.
pub fn read(key: &Key) -> Read {
    let (why, help) = match key.kind {
        Kind::EnvoyFilter => (
            "it patches Envoy's configuration, and there is no Envoy here",
            "say it with VirtualService, DestinationRule, HTTPRoute, AuthorizationPolicy or RateLimit, and delete it",
        ),
        Kind::WasmPlugin => (
            "it loads a filter into Envoy, and there is no Envoy here",
            "do it in the application or in a proxy of your own, and delete it",
        ),
        _ => (
            "it sets up sidecars, and there are none here",
            "the mesh's own settings are the ConfigMap `undermesh`, key `mesh`; delete it",
        ),
    };
    let message = format!("{} is not supported and has no effect: {why}", key.kind.name());
    Read { outcome: Err(Unreadable::default()), problems: vec![Problem::error("kind", message).help(help)] }
}
