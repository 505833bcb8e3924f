//! Mesh settings: the ConfigMap `undermesh` of the root namespace, whose key `mesh` is a text of YAML. Its fields have the names that Istio's MeshConfig
//! gives them, where Istio has the setting. All that Istio knows is known here: what nobody heeds is named (`mesh_unheeded`), and what is no setting at all is refused.

use mesh_core::{ArcStr, TrustDomain};

use super::fields::{Fields, Mapping};
use super::gateway_topology::GatewayTopology;
use super::label_selector::{self, LabelSelector};
use super::mesh_authorizers::Authorizers;
use super::mesh_defaults::{self, MeshDefaults};
use super::mesh_providers::{self, Providers};
use super::mesh_telemetry::{self, MeshTelemetry};
use super::mesh_unheeded::{self, UNHEEDED};
use super::{Key, Object, Read, Unreadable, meta};
use crate::diagnosis::{Problem, closest};
use crate::yaml::node::{self, Node as Tree, Value};
use crate::yaml::stack;

/// What the ConfigMap is called.
pub const NAME: &str = "undermesh";
/// The key of its data.
pub const KEY: &str = "mesh";

/// More trust domains than meshes are made of; each principal of a policy is sent for each of them.
const MOST_ALIASES: usize = 16;

/// What is done with names that Istio has given: its root namespace and its ConfigMap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IstioNames {
    /// They are ours unless an Istio uses them.
    #[default]
    Auto,
    /// They are ours.
    Own,
    /// They are nobody's.
    Off,
}

impl IstioNames {
    /// How they are written.
    pub const TEXTS: [&'static str; 3] = ["auto", "own", "off"];

    /// Reads one of [`Self::TEXTS`].
    pub fn of(text: &str) -> Option<Self> {
        let all = [IstioNames::Auto, IstioNames::Own, IstioNames::Off];
        Self::TEXTS.iter().zip(all).find(|(known, _)| **known == text).map(|(_, names)| names)
    }
}

/// What the ConfigMap sets; the command line says the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    /// Of all identities.
    pub trust_domain: Option<TrustDomain>,
    /// Trust domains that mean the same in policies.
    pub aliases: Vec<TrustDomain>,
    /// Policies there hold in the whole mesh.
    pub root_namespace: Option<ArcStr>,
    /// Namespaces that any of them selects are of the mesh; none selects all.
    pub discovery: Vec<LabelSelector>,
    /// What is done with Istio's names.
    pub istio_names: Option<IstioNames>,
    /// Logs and spans.
    pub telemetry: MeshTelemetry,
    /// Whom policies may ask.
    pub authorizers: Authorizers,
    /// Pods may reach only what the mesh knows.
    pub registry_only: bool,
    /// What stands before gateways that do not say it themselves.
    pub topology: GatewayTopology,
    /// What holds where manifests say nothing.
    pub defaults: MeshDefaults,
}

/// What is said where somebody writes `ALLOW_ANY_DYNAMIC_DNS`, here and in Sidecars.
pub const UNKNOWN_NAMES: &str = "no name of a request or of TLS is looked up where nobody knows its host: it is ALLOW_ANY, and connections go to the address that they are made to";

const BUILT: [&str; 14] = [
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "defaultConfig",
    "defaultProviders",
    "discoverySelectors",
    "enableAutoMtls",
    "enableTracing",
    "extensionProviders",
    "istioNames",
    "outboundTrafficPolicy",
    "rootNamespace",
    "trustDomain",
    "trustDomainAliases",
];

/// All settings that have an effect.
fn built() -> impl Iterator<Item = &'static str> {
    BUILT.into_iter().chain(mesh_defaults::FIELDS)
}

/// Reads the ConfigMap.
pub fn read(_: &Key, tree: &Tree) -> Read {
    let mut fields = Fields::default();
    let config = config_map(tree, &mut fields);
    let outcome = match config {
        Some(config) if !meta::has_error(&fields.problems) => Ok(Object::MeshConfig(config.into())),
        _ => Err(Unreadable::default()),
    };
    Read { outcome, problems: fields.problems }
}

fn config_map(tree: &Tree, fields: &mut Fields) -> Option<MeshConfig> {
    let empty = Tree { value: Value::Map(Vec::new()), span: tree.span };
    let data = fields.any_mapping(tree.get("data").unwrap_or(&empty), "data")?;
    for entry in data.entries().iter().filter(|entry| entry.key != KEY) {
        let message = match entry.key.as_str() {
            "meshNetworks" => "networks of other clusters are not built yet, it has no effect".to_owned(),
            other => format!("{other:?} is not read"),
        };
        let problem = Problem::warning(format!("{}!", data.field(&entry.key)), message);
        fields.problems.push(problem.help(format!("the settings are the text under `{KEY}`")));
    }
    let path = data.field(KEY);
    let text = match data.get(KEY).map(|node| &node.value) {
        Some(Value::String(text)) => text,
        // A key that is gone is not taken for the wish to have the defaults, which would be another trust domain.
        None | Some(Value::Null) => {
            let problem = Problem::error("data", format!("the key `{KEY}` is missing"));
            fields
                .problems
                .push(problem.help(format!("write `{KEY}: \"\"`, or delete the ConfigMap, for the defaults")));
            return None;
        }
        Some(other) => {
            let problem = Problem::error(path, format!("expected a text, found {}", other.kind()));
            fields.problems.push(problem.help(format!("begin it with `{KEY}: |` and indent the settings below")));
            return None;
        }
    };
    match stack::with_room(|| node::parse(text)) {
        Ok(Ok(Tree { value: Value::Null, .. })) => Some(MeshConfig::default()),
        Ok(Ok(inner)) => settings(&inner, &path, fields),
        Ok(Err((message, span))) => {
            fields.error(path, format!("not valid YAML, line {} of the text: {message}", span.line));
            None
        }
        Err(why) => {
            fields.error(path, why);
            None
        }
    }
}

fn settings(tree: &Tree, path: &str, fields: &mut Fields) -> Option<MeshConfig> {
    let mesh = fields.any_mapping(tree, path)?;
    for entry in mesh.entries() {
        let (key, field) = (entry.key.as_str(), mesh.field(&entry.key));
        if UNHEEDED.contains(&key) {
            fields.problems.push(Problem::warning(field, mesh_unheeded::why(key)));
        } else if !built().any(|built| built == key) {
            let known: Vec<&str> = built().chain(UNHEEDED).collect();
            let help = match closest(key, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("settings that have an effect: {}", built().collect::<Vec<_>>().join(", ")),
            };
            fields.problems.push(Problem::error(field, format!("there is no setting {key:?}")).help(help));
        }
    }
    let mut config = MeshConfig::default();
    if let Some(text) = fields.string(&mesh, "trustDomain") {
        match text.parse() {
            Ok(domain) => config.trust_domain = Some(domain),
            Err(error) => fields.error(mesh.field("trustDomain"), format!("{error}")),
        }
    }
    config.aliases = aliases(&mesh, fields);
    if let Some(text) = fields.string(&mesh, "rootNamespace") {
        match meta::label(text) {
            Ok(()) => config.root_namespace = Some(text.into()),
            Err(why) => fields.error(mesh.field("rootNamespace"), format!("{text:?} is not a namespace: {why}")),
        }
    }
    if let Some(Value::Bool(false)) = mesh.get("istioNames").map(|node| &node.value) {
        // YAML 1.1 reads `off` as a boolean.
        config.istio_names = Some(IstioNames::Off);
    } else if let Some(text) = fields.string(&mesh, "istioNames") {
        config.istio_names = IstioNames::of(text);
        if config.istio_names.is_none() {
            let problem = Problem::error(mesh.field("istioNames"), format!("unknown value {text:?}"));
            fields.problems.push(problem.help(format!("write one of {}", IstioNames::TEXTS.join(", "))));
        }
    }
    config.discovery = discovery(&mesh, fields);
    config.registry_only = is_registry_only(&mesh, fields);
    let providers = mesh.get("extensionProviders");
    let read = |tree| mesh_providers::read(tree, &mesh.field("extensionProviders"), &mut fields.problems);
    let Providers { takers, authorizers } = providers.map(read).unwrap_or_default();
    config.telemetry = mesh_telemetry::read(tree, path, takers, &mut fields.problems);
    config.authorizers = authorizers;
    if let Some(tree) = mesh.get("defaultConfig") {
        config.topology = GatewayTopology::read(tree, &mesh.field("defaultConfig"), &mut fields.problems);
    }
    config.defaults = MeshDefaults::read(tree, path, &mut fields.problems);
    match mesh.get("enableAutoMtls").map(|node| &node.value) {
        None | Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => {
            let message = "members of the mesh use mutual TLS with each other in any case: it has no effect";
            fields.problems.push(Problem::warning(mesh.field("enableAutoMtls"), message));
        }
        Some(other) => {
            fields.error(mesh.field("enableAutoMtls"), format!("expected a boolean, found {}", other.kind()))
        }
    }
    Some(config)
}

fn aliases(mesh: &Mapping<'_>, fields: &mut Fields) -> Vec<TrustDomain> {
    const FIELD: &str = "trustDomainAliases";
    let mut aliases = Vec::new();
    // Whoever writes none means none.
    let is_empty = matches!(mesh.get(FIELD).map(|node| &node.value), Some(Value::List(items)) if items.is_empty());
    let texts = if is_empty { Vec::new() } else { fields.strings(mesh, FIELD) };
    for (path, text) in texts {
        match text.parse() {
            Ok(domain) => aliases.push(domain),
            Err(error) => fields.error(path, format!("{error}")),
        }
    }
    if aliases.len() > MOST_ALIASES {
        fields.error(mesh.field(FIELD), format!("{} entries, the limit is {MOST_ALIASES}", aliases.len()));
    }
    aliases
}

/// Here an empty list says what it says in Istio: every namespace.
fn discovery(mesh: &Mapping<'_>, fields: &mut Fields) -> Vec<LabelSelector> {
    const FIELD: &str = "discoverySelectors";
    let items: &[Tree] = match mesh.get(FIELD).map(|node| &node.value) {
        Some(Value::List(items)) if items.is_empty() => &[],
        _ => fields.list(mesh, FIELD).unwrap_or_default(),
    };
    let path = |index| format!("{}[{index}]", mesh.field(FIELD));
    items.iter().enumerate().filter_map(|(index, tree)| label_selector::read(tree, &path(index), fields)).collect()
}

fn is_registry_only(mesh: &Mapping<'_>, fields: &mut Fields) -> bool {
    let Some(tree) = mesh.get("outboundTrafficPolicy") else { return false };
    let Some(policy) = fields.mapping(tree, &mesh.field("outboundTrafficPolicy"), &["mode", "egressProxy"]) else {
        return false;
    };
    if policy.get("egressProxy").is_some() {
        let message = "egressProxy is known, but not built yet: it has no effect";
        fields.problems.push(Problem::warning(policy.field("egressProxy"), message));
    }
    match fields.string(&policy, "mode") {
        None | Some("ALLOW_ANY") => false,
        Some("ALLOW_ANY_DYNAMIC_DNS") => {
            fields.problems.push(Problem::warning(policy.field("mode"), UNKNOWN_NAMES).help("write ALLOW_ANY"));
            false
        }
        Some("REGISTRY_ONLY") => true,
        Some(other) => {
            let problem = Problem::error(policy.field("mode"), format!("unknown mode {other:?}"));
            fields.problems.push(problem.help("write ALLOW_ANY or REGISTRY_ONLY"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;

    /// What is made of a text of settings, and what is said of it.
    fn read_text(mesh: &str) -> (Option<MeshConfig>, Vec<String>) {
        let tree = crate::cluster::decode::tree(serde_json::json!({ "data": { "mesh": mesh } }));
        let key = Key { kind: Kind::ConfigMap, namespace: "undermesh-system".into(), name: NAME.into() };
        let Read { outcome, problems } = read(&key, &tree);
        let config = outcome.ok().map(|object| match object {
            Object::MeshConfig(config) => (*config).clone(),
            other => panic!("{other:?}"),
        });
        (config, problems.iter().map(|p| format!("{} {}: {}", p.severity, p.field, p.message)).collect())
    }

    #[test]
    fn settings_are_read_named_or_refused() {
        assert_eq!(read_text(""), (Some(MeshConfig::default()), vec![]));
        let (config, said) = read_text(
            "trustDomain: prod.example\nrootNamespace: config\nistioNames: off\n\
             discoverySelectors:\n- matchLabels: {mesh: in}\n- matchExpressions: [{key: team, operator: Exists}]\n\
             outboundTrafficPolicy: {mode: ALLOW_ANY}\nenableAutoMtls: true\n",
        );
        assert_eq!(said, Vec::<String>::new());
        let config = config.unwrap();
        assert_eq!(config.trust_domain.unwrap().as_str(), "prod.example");
        assert_eq!(
            (config.root_namespace.as_deref(), config.istio_names, config.discovery.len()),
            (Some("config"), Some(IstioNames::Off), 2)
        );
    }

    #[test]
    fn features_EX_5_AP_10_what_is_not_built_is_named_and_what_is_no_setting_is_refused() {
        let domain = "is not 1-255 lowercase letters, digits, dots, dashes and underscores";
        let not_built = "is known, but not built yet: it has no effect";
        for (text, is_good, said) in [
            ("discoverySelectors: []", true, vec![]),
            ("trustDomainAliases: []", true, vec![]),
            ("trustDomainAliases: [old.example, a]", true, vec![]),
            (
                "trustDomainAliases: [old.example, Old, 'spiffe://a']",
                false,
                vec![format!("error data.mesh.trustDomainAliases[1]: trust domain \"Old\" {domain}"), format!("error data.mesh.trustDomainAliases[2]: trust domain \"spiffe://a\" {domain}")],
            ),
            (&format!("trustDomainAliases: [{}]", vec!["a"; 17].join(", ")), false, vec!["error data.mesh.trustDomainAliases: 17 entries, the limit is 16".into()]),
            ("tlsDefaults: {}", true, vec![]),
            ("udp: deny", true, vec![format!("warning data.mesh.udp: udp {not_built}")]),
            ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", true, vec![]),
            (
                "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}",
                true,
                vec![format!("warning data.mesh.outboundTrafficPolicy.mode: {UNKNOWN_NAMES}")],
            ),
            (
                "enableAutoMtls: false",
                true,
                vec!["warning data.mesh.enableAutoMtls: members of the mesh use mutual TLS with each other in any case: it has no effect".into()],
            ),
            ("trustdomain: a", false, vec!["error data.mesh.trustdomain: there is no setting \"trustdomain\"".into()]),
            ("rootNamespace: A", false, vec!["error data.mesh.rootNamespace: \"A\" is not a namespace: it must begin and end with a lower-case letter or digit".into()]),
            ("rootNamespace: \"\"", false, vec!["error data.mesh.rootNamespace: an empty string".into()]),
            ("defaultConfig: {gatewayTopology: {numTrustedProxies: 2, proxyProtocol: {}}}", true, vec![]),
            (
                "defaultConfig: {gatewayTopology: {numTrustedProxies: 65}}",
                false,
                vec!["error data.mesh.defaultConfig.gatewayTopology.numTrustedProxies: more than 64 proxies".into()],
            ),
            ("- a", false, vec!["error data.mesh: expected a mapping, found a list".into()]),
            ("outboundTrafficPolicy: {mode: NONE}", false, vec!["error data.mesh.outboundTrafficPolicy.mode: unknown mode \"NONE\"".into()]),
            ("discoverySelectors: [{matchLabel: {a: b}}]", false, vec!["error data.mesh.discoverySelectors[0].matchLabel!: unknown field \"matchLabel\"".into()]),
        ] {
            let (config, problems) = read_text(text);
            assert_eq!((config.is_some(), &problems), (is_good, &said), "{text}");
        }
        for (text, expected) in [
            ("{mode: REGISTRY_ONLY}", true),
            ("{mode: ALLOW_ANY}", false),
            ("{mode: ALLOW_ANY_DYNAMIC_DNS}", false),
            ("{}", false),
        ] {
            let (config, _) = read_text(&format!("outboundTrafficPolicy: {text}"));
            assert_eq!(config.unwrap().registry_only, expected, "{text}");
        }
        let (config, said) = read_text("a: [\n");
        assert!(config.is_none() && said[0].starts_with("error data.mesh: not valid YAML, line "), "{said:?}");
        let (config, said) = read_text(&"[".repeat(100_000));
        assert!(config.is_none() && said.len() == 1, "{said:?}");
        let (config, said) = read_text("trustDomain: spiffe://a\n");
        assert!(config.is_none() && said[0].starts_with("error data.mesh.trustDomain: "), "{said:?}");
    }

    #[test]
    fn a_config_map_without_settings_is_refused() {
        let key = Key { kind: Kind::ConfigMap, namespace: "undermesh-system".into(), name: NAME.into() };
        for (object, field) in [
            (serde_json::json!({}), "data"),
            (serde_json::json!({ "data": { "mesh.yaml": "" } }), "data[\"mesh.yaml\"]!"),
            (serde_json::json!({ "data": { "mesh": { "trustDomain": "a" } } }), "data.mesh"),
        ] {
            let Read { outcome, problems } = read(&key, &crate::cluster::decode::tree(object));
            assert!(outcome.is_err());
            assert_eq!(problems[0].field, field);
        }
    }
}
