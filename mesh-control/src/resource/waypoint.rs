//! What the labels of services, pods and namespaces say about waypoints. Whether there is such a waypoint, and whether it takes them, the joining finds
//! (`index::waypoint`).

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_core::asked;
pub use mesh_core::asked::{Asked, CANARY, USE};
use mesh_core::{ArcStr, NamespacedName};

use super::{Labels, meta};
use crate::diagnosis::Problem;

/// An annotation: the share, a whole number up to 100; without it none.
pub const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// On a service or a namespace: whether gateways go through its waypoint, too.
pub const INGRESS: &str = "istio.io/ingress-use-waypoint";
/// On a pod: the gateway that it serves.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// On a gateway or its class: what the waypoint is for.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// On a waypoint's gateway, `true`: endpoints are told in `x-forwarded-client-cert` who the client is.
pub const NAMES_CLIENTS: &str = "ambient.istio.io/xfcc-include-client-identity";
/// On a gateway: the service account of its pods.
pub const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";

/// On a service or a namespace, as a label or an annotation: whether what does not come from the waypoint is refused.
pub const BYPASS: &str = "undermesh.io/waypoint-bypass";

/// On a service or a namespace, as a label or an annotation: whether clients may go without the waypoint while nobody answers there.
pub const OPTIONAL: &str = "undermesh.io/waypoint-optional";

/// Whether clients may go without a waypoint that does not answer, as far as an object says it; its label goes before its annotation. What cannot be read is no.
pub fn optional(meta: &ObjectMeta, problems: &mut Vec<Problem>) -> Option<bool> {
    let label = meta.labels.as_ref().and_then(|labels| labels.get(OPTIONAL)).map(String::as_str);
    let (field, text) = match (label, meta::annotation(meta, OPTIONAL)) {
        (Some(text), _) => ("labels", text),
        (None, text) => ("annotations", text?),
    };
    match text {
        "" => None,
        "true" => Some(true),
        "false" => Some(false),
        _ => {
            let message = format!("{text:?} says nothing, nobody goes without the waypoint");
            let problem = Problem::error(format!("metadata.{field}[\"{OPTIONAL}\"]"), message);
            problems.push(problem.help("write `true` or `false`"));
            Some(false)
        }
    }
}

/// Whether gateways go through the waypoint, as far as labels say it.
pub fn ingress(labels: Option<&Labels>) -> Option<bool> {
    match labels?.get(INGRESS)?.as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// What is done with connections that go around the waypoint: to an address of a pod, by clients that know nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bypass {
    /// Nothing is said.
    #[default]
    Unsaid,
    /// Policies at L4 decide.
    Allow,
    /// The pod's agent refuses them.
    Refuse,
}

impl Bypass {
    /// What an object says; its label goes before its annotation. What cannot be read refuses.
    pub fn of(meta: &ObjectMeta, problems: &mut Vec<Problem>) -> Self {
        let label = meta.labels.as_ref().and_then(|labels| labels.get(BYPASS)).map(String::as_str);
        let (field, text) = match (label, meta::annotation(meta, BYPASS)) {
            (Some(text), _) => ("labels", text),
            (None, Some(text)) => ("annotations", text),
            (None, None) => return Bypass::Unsaid,
        };
        Bypass::meant(text).unwrap_or_else(|| {
            let message = format!("{text:?} says nothing, what goes around the waypoint is refused");
            let problem = Problem::error(format!("metadata.{field}[\"{BYPASS}\"]"), message);
            problems.push(problem.help("write `refuse` or `allow`"));
            Bypass::Refuse
        })
    }

    /// The same of an object of which only its labels are kept, and of which nothing is told here.
    pub fn of_labels(labels: &Labels) -> Self {
        labels.get(BYPASS).map_or(Bypass::Unsaid, |text| Bypass::meant(text).unwrap_or(Bypass::Refuse))
    }

    fn meant(text: &str) -> Option<Self> {
        match text {
            "" => Some(Bypass::Unsaid),
            "allow" => Some(Bypass::Allow),
            "refuse" => Some(Bypass::Refuse),
            _ => None,
        }
    }

    /// What counts of this, and of what a namespace says for its objects.
    pub fn or(self, namespace: Self) -> Self {
        if self == Bypass::Unsaid { namespace } else { self }
    }
}

/// On a pod, with [`TUNNEL_HTTP`] as in Istio: it takes tunnels. Pods of gateways that do not say so are reached without.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// A tunnel is HTTP/2's CONNECT in mutual TLS.
pub const TUNNEL_HTTP: &str = "http";

/// On a gateway: what its Deployment and its Service are called.
pub const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// The longest value of a label, and the longest name of a Service.
const LONGEST: usize = 63;

/// What the Deployment and the Service of a gateway are called: a waypoint's as the gateway, others by the class, too, as with Istio; an override counts more.
/// A name that no Service can have is one that can, with a hash of the whole name at its end.
pub fn deployed_name(gateway: &str, class: &str, is_waypoint: bool, marks: &Labels) -> ArcStr {
    let chosen = marks.get(NAME_OVERRIDE).filter(|name| !name.is_empty());
    match (chosen, is_waypoint) {
        (Some(name), _) => fit(name),
        (None, true) => fit(gateway),
        (None, false) => fit(&format!("{gateway}-{class}")),
    }
}

/// The value of the label [`GATEWAY_NAME`] for a gateway, whose name may be longer than a label's value may be.
pub fn gateway_label(gateway: &str) -> ArcStr {
    if gateway.len() <= LONGEST { gateway.into() } else { hashed(gateway, gateway) }
}

fn fit(name: &str) -> ArcStr {
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && meta::label(name).is_ok() {
        return name.into();
    }
    // Before 1.34 a Service has to begin with a letter.
    let plain = name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit(), "-");
    let begun = plain.trim_start_matches('-');
    match begun.starts_with(|c: char| c.is_ascii_lowercase()) {
        true => hashed(begun, name),
        false => hashed(&format!("gateway-{begun}"), name),
    }
}

/// The beginning of `text`, and a hash of `whole`. `text` is ASCII, as all names are.
fn hashed(text: &str, whole: &str) -> ArcStr {
    let sum = digest(&SHA256, whole.as_bytes());
    let hash: String = sum.as_ref().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let room = text.floor_char_boundary(LONGEST - 1 - hash.len());
    format!("{}-{hash}", text[..room].trim_end_matches(['-', '.'])).into()
}

/// The second waypoint that an object names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedCanary {
    /// Which one.
    pub waypoint: NamespacedName,
    /// Its share of 100, or what is written instead of one.
    pub weight: Result<u32, String>,
}

impl AskedCanary {
    /// What the labels and annotations of an object in `namespace` say.
    pub fn of(labels: Option<&Labels>, annotations: Option<&Labels>, namespace: &str) -> Option<Self> {
        let waypoint = asked::canary(labels, namespace)?;
        let weight = match annotations.and_then(|annotations| annotations.get(CANARY_WEIGHT)) {
            None => Ok(0),
            Some(text) => text.trim().parse().ok().filter(|weight| *weight <= 100).ok_or_else(|| text.clone()),
        };
        Some(Self { waypoint, weight })
    }
}

/// Where the label stands.
pub fn field() -> String {
    format!("metadata.labels[\"{USE}\"]")
}

#[cfg(test)]
mod tests {
    use mesh_core::asked::CANARY_NAMESPACE;

    use super::*;

    #[test]
    fn labels_and_an_annotation_say_which_share_a_canary_has() {
        let canary = |namespace: &str, weight: Result<u32, &str>| {
            let waypoint = NamespacedName::new(namespace, "new");
            Some(AskedCanary { waypoint, weight: weight.map_err(str::to_owned) })
        };
        let marks = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        for (labels, weight, expected) in [
            (&[][..], Some("5"), None),
            (&[(CANARY, "")], Some("5"), None),
            (&[(CANARY, "new")], Some("5"), canary("shop", Ok(5))),
            (&[(CANARY, "new"), (CANARY_NAMESPACE, "infra")], Some(" 100 "), canary("infra", Ok(100))),
            (&[(CANARY, "new")], None, canary("shop", Ok(0))),
            (&[(CANARY, "new")], Some("101"), canary("shop", Err("101"))),
            (&[(CANARY, "new")], Some("-1"), canary("shop", Err("-1"))),
            (&[(CANARY, "new")], Some("5%"), canary("shop", Err("5%"))),
            (&[(CANARY, "new")], Some(""), canary("shop", Err(""))),
        ] {
            let annotations: Option<Labels> = weight.map(|weight| marks(&[(CANARY_WEIGHT, weight)]));
            let labels: Labels = marks(labels);
            let found = AskedCanary::of(Some(&labels), annotations.as_ref(), "shop");
            assert_eq!(found, expected, "{labels:?} {weight:?}");
        }
    }

    #[test]
    fn what_is_no_answer_makes_no_waypoint_optional() {
        let of = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| {
            let map = |all: &[(&str, &str)]| {
                Some(all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
            };
            let meta = ObjectMeta { labels: map(labels), annotations: map(annotations), ..ObjectMeta::default() };
            let mut problems = Vec::new();
            (optional(&meta, &mut problems), problems.len())
        };
        for (labels, annotations, expected) in [
            (&[][..], &[][..], (None, 0)),
            (&[(OPTIONAL, "")], &[], (None, 0)),
            (&[(OPTIONAL, "true")], &[], (Some(true), 0)),
            (&[(OPTIONAL, "false")], &[(OPTIONAL, "true")], (Some(false), 0)),
            (&[], &[(OPTIONAL, "true")], (Some(true), 0)),
            (&[(OPTIONAL, "yes")], &[], (Some(false), 1)),
            (&[(OPTIONAL, "True")], &[(OPTIONAL, "true")], (Some(false), 1)),
        ] {
            assert_eq!(of(labels, annotations), expected, "{labels:?} {annotations:?}");
        }
    }

    #[test]
    fn a_gateways_objects_have_names_that_a_service_can_have() {
        let none = Labels::new();
        let long = "a".repeat(253);
        for (gateway, class, is_waypoint, expected) in [
            ("wp", "istio-waypoint", true, "wp"),
            ("edge", "istio", false, "edge-istio"),
            ("shop.example", "undermesh-waypoint", true, "shop-example-"),
            ("1st", "undermesh-waypoint", true, "gateway-1st-"),
            (&long, "undermesh-waypoint", true, &"a".repeat(52)),
        ] {
            let name = deployed_name(gateway, class, is_waypoint, &none);
            assert!(name.starts_with(expected), "{gateway}: {name}");
            assert!(meta::label(&name).is_ok() && !name.starts_with(|c: char| c.is_ascii_digit()), "{gateway}: {name}");
            assert_eq!(name == gateway, gateway == "wp", "{name}");
        }
        // What differs at its end only, or in what is not kept, is not one.
        let of = |name: &str| deployed_name(name, "c", true, &none);
        assert_ne!(of(&long), of(&format!("{}b", "a".repeat(252))));
        assert_ne!(of("a.b"), of("a-b"));
        let chosen = Labels::from([(NAME_OVERRIDE.to_owned(), "mine".to_owned())]);
        assert_eq!(deployed_name("edge", "istio", false, &chosen), "mine");
        assert_eq!(gateway_label("a.b"), "a.b");
        assert_eq!(gateway_label(&long).len(), 63);
    }
}
