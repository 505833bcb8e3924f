//! What the mesh settings say in the place of manifests that do not say it themselves: what is tried again, how long a connection may take to come about, which
//! places are near, who sees what, how much of a path is made one, how often names are looked up, and what is spoken of TLS (`mesh_tls`). Read by `mesh_config`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::NamespacedName;
use mesh_core::l7::path::Spelling;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::mesh_tls::TlsDefaults;
use super::routing::destination_rule::Locality;
use super::routing::values::{Span, visibility};
use super::routing::virtual_service::Retries;
use super::routing::{Check, DestinationRule, Routed, Routes, ServiceEntry, VirtualService};
use super::strict::{self, Unknown};
use crate::diagnosis::Problem;
use crate::yaml::node::Node as Tree;

/// The settings that are read here.
pub const FIELDS: [&str; 10] = [
    "connectTimeout",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "dnsRefreshRate",
    "localityLbSetting",
    "meshMTLS",
    "pathNormalization",
    "tlsDefaults",
];

/// Nobody's resolver is asked for the same name more often.
const LEAST_REFRESH: Duration = Duration::from_secs(1);

/// What holds where a manifest says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshDefaults {
    /// How much of a path is made one; `None` is what waypoints do by themselves.
    pub spelling: Option<Spelling>,
    /// What is tried again.
    pub retries: Option<Retries>,
    /// Until a connection to an endpoint has come about.
    pub connect_timeout: Option<Duration>,
    /// Which places are near.
    pub locality: Option<Locality>,
    /// Who sees what.
    pub exports: Exports,
    /// What is spoken of TLS outside of the mesh.
    pub tls: TlsDefaults,
    /// Between looks at names of ServiceEntries.
    pub dns_refresh: Option<Duration>,
}

/// Who sees objects that have no `exportTo`; nothing is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    /// ServiceEntries.
    pub entries: Vec<String>,
    /// VirtualServices.
    pub virtual_services: Vec<String>,
    /// DestinationRules.
    pub destination_rules: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct PathNormalization {
    normalization: Normalization,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Normalization {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

impl MeshDefaults {
    /// Of the mesh settings, which stand at `at`. What is wrong with them is an error.
    pub fn read(tree: &Tree, at: &str, problems: &mut Vec<Problem>) -> Self {
        let mut fields = Reader { tree, at, problems };
        Self {
            spelling: fields.spelling(),
            retries: fields.retries(),
            connect_timeout: fields.connect_timeout(),
            locality: fields.locality(),
            exports: Exports {
                entries: fields.exports("defaultServiceExportTo"),
                virtual_services: fields.exports("defaultVirtualServiceExportTo"),
                destination_rules: fields.exports("defaultDestinationRuleExportTo"),
            },
            dns_refresh: fields.dns_refresh(),
            tls: TlsDefaults::read(tree, at, problems),
        }
    }
}

/// Reads one setting after the other.
struct Reader<'a> {
    tree: &'a Tree,
    at: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    fn read<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let field = self.field(name);
        strict::read(self.tree.get(name)?, &field, Unknown::Either, self.problems)
    }

    fn spelling(&mut self) -> Option<Spelling> {
        match self.read::<PathNormalization>("pathNormalization")?.normalization {
            Normalization::Default => None,
            Normalization::Base => Some(Spelling::Base),
            Normalization::MergeSlashes => Some(Spelling::MergeSlashes),
            Normalization::DecodeAndMergeSlashes => Some(Spelling::DecodeAndMergeSlashes),
            Normalization::None => {
                let message = "paths are never left as they come: another spelling would go around policies";
                let field = self.field("pathNormalization.normalization");
                self.problems.push(Problem::warning(field, message).help("BASE is in force: write that"));
                Some(Spelling::Base)
            }
        }
    }

    fn retries(&mut self) -> Option<Retries> {
        let read: Retries = self.read("defaultHttpRetryPolicy")?;
        let field = self.field("defaultHttpRetryPolicy");
        read.check(&field, None, &mut Check::new("", self.problems));
        Some(read)
    }

    fn connect_timeout(&mut self) -> Option<Duration> {
        let read: Span = self.read("connectTimeout")?;
        let field = self.field("connectTimeout");
        Check::new("", self.problems).time(field, Some(read));
        Some(read.0)
    }

    fn locality(&mut self) -> Option<Locality> {
        let read: Locality = self.read("localityLbSetting")?;
        // Whether endpoints are found to be ill is for rules of hosts to say.
        let field = self.field("localityLbSetting");
        read.check(&field, true, &mut Check::new("", self.problems));
        Some(read)
    }

    fn exports(&mut self, name: &str) -> Vec<String> {
        let read: Vec<String> = self.read(name).unwrap_or_default();
        let field = self.field(name);
        Check::new("", self.problems).each(&field, &read, visibility);
        if name == "defaultServiceExportTo" && !read.is_empty() {
            let message = "it holds for ServiceEntries: Services of Kubernetes are seen in all namespaces";
            self.problems.push(Problem::note(field, message));
        }
        read
    }

    fn dns_refresh(&mut self) -> Option<Duration> {
        let read: Span = self.read("dnsRefreshRate")?;
        if read.0 < LEAST_REFRESH {
            let message = "names are not looked up more often than once a second";
            let problem = Problem::error(self.field("dnsRefreshRate"), message);
            self.problems.push(problem.help("write at least 1s"));
        }
        Some(read.0)
    }
}

/// Objects that say nothing of who sees them, as they are written, and as they are filled.
type Pairs<T> = BTreeMap<NamespacedName, (Arc<Routed<T>>, Arc<Routed<T>>)>;

/// Says who sees objects that do not say it. One that has not changed becomes the same object as the last time: whoever compares them does not look into it.
#[derive(Debug, Default)]
pub struct Filling {
    exports: Exports,
    entries: Pairs<ServiceEntry>,
    virtual_services: Pairs<VirtualService>,
    destination_rules: Pairs<DestinationRule>,
}

impl Filling {
    /// Fills all of them.
    pub fn fill(&mut self, exports: &Exports, routes: &mut Routes) {
        if self.exports != *exports {
            *self = Self { exports: exports.clone(), ..Self::default() };
        }
        macro_rules! fill {
            ($($own:ident $objects:ident)*) => {$(
                fill(&exports.$own, &mut routes.$objects, &mut self.$own, |s| &s.export_to, |s| &mut s.export_to);
            )*};
        }
        fill!(entries service_entries virtual_services virtual_services destination_rules destination_rules);
    }
}

/// `read` and `write` say where an object has its `exportTo`.
fn fill<T: Clone>(
    exports: &[String],
    objects: &mut BTreeMap<NamespacedName, Arc<Routed<T>>>,
    last: &mut Pairs<T>,
    read: fn(&T) -> &Vec<String>,
    write: fn(&mut T) -> &mut Vec<String>,
) {
    if exports.is_empty() {
        return;
    }
    let mut pairs = Pairs::new();
    for (name, object) in objects.iter_mut().filter(|(_, object)| read(&object.spec).is_empty()) {
        let known = last.remove(name).filter(|(written, _)| Arc::ptr_eq(written, object));
        let (written, filled) = known.unwrap_or_else(|| {
            let mut filled = Routed::clone(object);
            *write(&mut filled.spec) = exports.to_vec();
            (object.clone(), Arc::new(filled))
        });
        *object = filled.clone();
        pairs.insert(name.clone(), (written, filled));
    }
    *last = pairs;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::node;

    fn read(text: &str) -> (MeshDefaults, Vec<String>) {
        let mut problems = Vec::new();
        let read = MeshDefaults::read(&node::parse(text).unwrap(), "m", &mut problems);
        (read, problems.iter().map(|p| format!("{} {}: {}", p.severity, p.field, p.message)).collect())
    }

    #[test]
    fn features_AP_8_how_much_of_a_path_is_made_one() {
        for (text, expected) in [
            ("{}", None),
            ("pathNormalization: {}", None),
            ("pathNormalization: {normalization: DEFAULT}", None),
            ("pathNormalization: {normalization: BASE}", Some(Spelling::Base)),
            ("pathNormalization: {normalization: MERGE_SLASHES}", Some(Spelling::MergeSlashes)),
            ("pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}", Some(Spelling::DecodeAndMergeSlashes)),
        ] {
            let (read, said) = read(text);
            assert_eq!((read.spelling, said), (expected, vec![]), "{text}");
        }
        let (none, said) = read("pathNormalization: {normalization: NONE}");
        assert_eq!(none.spelling, Some(Spelling::Base));
        let why = "paths are never left as they come: another spelling would go around policies";
        assert_eq!(said, [format!("warning m.pathNormalization.normalization: {why}")]);
    }

    #[test]
    fn features_EX_5_what_holds_where_manifests_say_nothing() {
        let (defaults, said) = read(
            "defaultHttpRetryPolicy: {attempts: 3, retryOn: '503'}\nconnectTimeout: 3s\ndnsRefreshRate: 1m\n\
             localityLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}\n\
             defaultVirtualServiceExportTo: [., shop]\ndefaultDestinationRuleExportTo: ['*']\n",
        );
        assert_eq!(said, [""; 0]);
        assert_eq!(defaults.retries.unwrap().attempts, Some(3));
        assert_eq!(defaults.connect_timeout, Some(Duration::from_secs(3)));
        assert_eq!(defaults.dns_refresh, Some(Duration::from_secs(60)));
        assert_eq!(defaults.locality.unwrap().priority, ["topology.kubernetes.io/zone"]);
        assert_eq!((defaults.exports.virtual_services.len(), defaults.exports.destination_rules.len()), (2, 1));
    }

    #[test]
    fn what_is_wrong_with_it_is_told() {
        let many = format!("defaultHttpRetryPolicy: {{attempts: 2, retryOn: '503{}'}}", ",503".repeat(100));
        for (text, expected) in [
            ("pathNormalization: {normalization: ALL}", "error m.pathNormalization.normalization: "),
            ("pathNormalization: {normalisation: BASE}", "error m.pathNormalization.normalisation!: "),
            (
                "defaultHttpRetryPolicy: {attempts: 2, retryOn: 5yx}",
                "error m.defaultHttpRetryPolicy.retryOn: nothing is tried again for",
            ),
            (
                "defaultHttpRetryPolicy: {attempts: 0, retryOn: 5xx}",
                "error m.defaultHttpRetryPolicy.attempts: 0 attempts",
            ),
            (
                "defaultHttpRetryPolicy: {retryOn: 5xx}",
                "warning m.defaultHttpRetryPolicy: nothing is tried again without `attempts`",
            ),
            ("defaultHttpRetryPolicy: {attempts: 1000}", "error m.defaultHttpRetryPolicy.attempts: "),
            (&many, "error m.defaultHttpRetryPolicy.retryOn: 101 entries"),
            ("connectTimeout: 10", "error m.connectTimeout: "),
            ("connectTimeout: 0s", "error m.connectTimeout: shorter than a millisecond"),
            ("localityLbSetting: {failover: [{from: a, to: a}]}", "error m.localityLbSetting.failover[0]: "),
            ("defaultVirtualServiceExportTo: [Shop]", "error m.defaultVirtualServiceExportTo[0]: "),
            ("defaultServiceExportTo: [.]", "note m.defaultServiceExportTo: it holds for ServiceEntries"),
            ("dnsRefreshRate: 999ms", "error m.dnsRefreshRate: names are not looked up more often than once a second"),
            ("dnsRefreshRate: 60", "error m.dnsRefreshRate: "),
        ] {
            let (_, said) = read(text);
            assert!(said.len() == 1 && said[0].starts_with(expected), "{text}: {said:?}");
        }
    }
}
