//! What joins depend on besides the objects that they join: what the command line says, and over it the mesh settings, which are an object too.

use mesh_core::{ArcStr, NamespacedName, TrustDomain};

use crate::diagnosis::Problem;
use crate::resource::gateway_topology::GatewayTopology;
use crate::resource::label_selector::LabelSelector;
use crate::resource::mesh_authorizers::Authorizers;
use crate::resource::mesh_config::{self, IstioNames};
use crate::resource::mesh_defaults::MeshDefaults;
use crate::resource::namespace::NAME_LABEL;
use crate::resource::pod::State;
use crate::resource::{Key, Kind, Labels, Objects, Secured};

/// Where Istio lives, and whose policies there hold in its whole mesh.
const ISTIO: &str = "istio-system";

/// What joins depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of all identities.
    pub trust_domain: TrustDomain,
    /// Others that mean the same in policies.
    pub aliases: Vec<TrustDomain>,
    /// In the uid of every workload.
    pub cluster_id: ArcStr,
    /// End of every service's host name.
    pub cluster_domain: ArcStr,
    /// Where the control plane keeps what is its own: mesh settings, root.
    pub home: ArcStr,
    /// Policies there hold in the whole mesh; converted mesh-wide policies get the first one's name.
    pub root_namespaces: Vec<ArcStr>,
    /// Namespaces that any of them selects are of the mesh; none selects all.
    pub discovery: Vec<LabelSelector>,
    /// Whom policies may ask.
    pub authorizers: Authorizers,
    /// Pods may reach only what the mesh knows, where no Sidecar says otherwise.
    pub registry_only: bool,
    /// What stands before gateways that do not say it themselves.
    pub topology: GatewayTopology,
    /// What holds where manifests say nothing.
    pub defaults: MeshDefaults,
    /// What is done with Istio's names.
    pub istio_names: IstioNames,
    /// An Istio runs in the cluster.
    pub istio_runs: bool,
    /// Namespace and name of the service accounts whose tokens are good: agents'. Their pods are known by uid.
    pub agents: Vec<(ArcStr, ArcStr)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::at("undermesh-system")
    }
}

impl Settings {
    /// Those of a control plane in the namespace `home`.
    pub fn at(home: &str) -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            aliases: Vec::new(),
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            home: home.into(),
            root_namespaces: vec![home.into()],
            discovery: Vec::new(),
            authorizers: Authorizers::new(),
            registry_only: false,
            topology: GatewayTopology::default(),
            defaults: MeshDefaults::default(),
            istio_names: IstioNames::default(),
            istio_runs: false,
            agents: Vec::new(),
        }
    }

    /// Whether policies of `namespace` hold in the whole mesh.
    pub fn is_root(&self, namespace: &str) -> bool {
        self.root_namespaces.iter().any(|r| r == namespace)
    }

    /// Whether a namespace is of the mesh. Its labels say so; those where the mesh itself is kept and set up always are, and so is one whose labels
    /// cannot be read.
    pub fn discovers(&self, objects: &Objects, namespace: &str) -> bool {
        let is_always = self.discovery.is_empty() || self.is_root(namespace) || namespace == self.home;
        if is_always || objects.unread_namespaces.contains(namespace) {
            return true;
        }
        let selects = |labels: &Labels| self.discovery.iter().any(|selector| selector.selects(labels));
        match objects.namespaces.get(namespace) {
            Some(known) => selects(&known.labels),
            None => selects(&[(NAME_LABEL.to_owned(), namespace.to_owned())].into()),
        }
    }

    /// Whether policies of a namespace are in force: unless its labels are known, and say that it is not of the mesh. Of one that is not known yet, or
    /// whose manifest is broken beyond its name, nobody has said that.
    pub fn heeds(&self, objects: &Objects, namespace: &str) -> bool {
        !objects.namespaces.contains_key(namespace) || self.discovers(objects, namespace)
    }

    /// What is called the mesh settings.
    pub fn config_name(&self) -> NamespacedName {
        NamespacedName::new(self.home.clone(), mesh_config::NAME)
    }

    /// Whether there are mesh settings that cannot be read and never could: what they say is not known, and no default stands for it.
    pub fn unread(&self, objects: &Objects) -> Option<String> {
        let name = self.config_name();
        let is_unread = matches!(objects.mesh_configs.get(&name), Some(Secured::Unreadable(_)));
        is_unread.then(|| format!("ConfigMap {name}"))
    }

    /// These, with what the objects say over them.
    pub fn with(&self, objects: &Objects, problems: &mut Vec<(Key, Problem)>) -> Settings {
        let mut settings = self.clone();
        let own = self.config_name();
        if let Some(Secured::Readable(config)) = objects.mesh_configs.get(&own) {
            if let Some(domain) = &config.trust_domain {
                if *domain != self.trust_domain {
                    // Agents know it from their command lines, as this process does.
                    let message = format!(
                        "{domain} is not the trust domain that processes were started with, {}",
                        self.trust_domain
                    );
                    let problem = Problem::warning("data.mesh.trustDomain", message);
                    let help = format!("agents without --trust-domain {domain} get no certificates any more");
                    problems.push((config_key(&own), problem.help(help)));
                }
                settings.trust_domain = domain.clone();
            }
            settings.aliases.clone_from(&config.aliases);
            if let Some(namespace) = &config.root_namespace {
                settings.root_namespaces = vec![namespace.clone()];
            }
            settings.discovery.clone_from(&config.discovery);
            settings.authorizers.clone_from(&config.authorizers);
            settings.registry_only = config.registry_only;
            settings.topology.clone_from(&config.topology);
            settings.defaults.clone_from(&config.defaults);
            settings.istio_names = config.istio_names.unwrap_or(settings.istio_names);
        }
        for name in objects.mesh_configs.keys().filter(|name| **name != own) {
            let message = format!("the mesh settings are those of namespace {}, these have no effect", self.home);
            problems.push((config_key(name), Problem::note("metadata.namespace", message)));
        }
        settings.istio_runs = istio_runs(objects);
        let is_ours = match settings.istio_names {
            IstioNames::Auto => !settings.istio_runs,
            IstioNames::Own => true,
            IstioNames::Off => false,
        };
        if is_ours && !settings.is_root(ISTIO) {
            settings.root_namespaces.push(ISTIO.into());
        }
        settings
    }
}

fn config_key(name: &NamespacedName) -> Key {
    Key { kind: Kind::ConfigMap, namespace: name.namespace.clone(), name: name.name.clone() }
}

/// Whether a real Istio uses the objects of its namespace. Its service outlives its pods.
fn istio_runs(objects: &Objects) -> bool {
    let is_istiod = |labels: &Labels| labels.get("app").is_some_and(|app| app == "istiod");
    let first = NamespacedName::new(ISTIO, "");
    let services = objects.services.range(first.clone()..).map(|(_, service)| service);
    let pods = objects.pods.range(first..).map(|(_, pod)| pod);
    services.take_while(|s| s.namespace == ISTIO).any(|s| s.selector.as_ref().is_some_and(is_istiod))
        || pods.take_while(|p| p.namespace == ISTIO).any(|p| p.state != State::Ended && is_istiod(&p.labels))
}
