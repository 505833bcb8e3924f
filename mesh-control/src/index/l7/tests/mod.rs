//! Manifests in, what is done with requests out.

mod backend_tls;
mod classic;
mod clusters;
mod conformance;
mod datagrams;
mod defaults;
mod failures;
mod frontends;
mod http_routes;
mod listener_sets;
mod listeners;
mod tables;
mod virtual_services;

use std::collections::BTreeMap;
use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_core::l7::cors::CorsVerdict;
use mesh_core::l7::{
    AbortStatus, Authority, Client, Decision, HeaderChanges, Labels, Miss, Outcome, Request, Target, path, pick,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};

use super::*;
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};

fn object(kind: Kind, namespace: &str, name: &str, spec: &str) -> Json {
    let spec: Json = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    json!({ "apiVersion": kind.api_versions()[0], "kind": kind.name(), "spec": spec,
        "metadata": { "name": name, "namespace": namespace } })
}

fn made(mut object: Json, when: &str) -> Json {
    object["metadata"]["creationTimestamp"] = json!(format!("{when}T00:00:00Z"));
    object
}

fn virtual_service(spec: &str) -> Json {
    object(Kind::VirtualService, "shop", "o", spec)
}

fn http_route(spec: &str) -> Json {
    object(Kind::HttpRoute, "shop", "o", spec)
}

fn service(namespace: &str, name: &str, ports: &[u16]) -> Json {
    let ports: Vec<Json> = ports.iter().map(|port| json!({ "name": format!("http-{port}"), "port": port })).collect();
    let mut service = object(Kind::Service, namespace, name, "{}");
    service["spec"] = json!({ "ports": ports, "selector": { "app": name } });
    service
}

/// Services that stand in every case.
fn shop() -> Vec<Json> {
    vec![
        service("shop", "web", &[80, 8080]),
        service("shop", "v1", &[80, 8080]),
        service("shop", "v2", &[80, 8080]),
        service("shop", "v3", &[80]),
        service("far", "stock", &[80]),
    ]
}

/// What comes of some objects, if one waypoint serves all services.
struct Mesh {
    table: Arc<Table>,
    clusters: Arc<Clusters>,
    problems: Problems,
}

fn objects(more: &[Json]) -> Objects {
    let text: Vec<String> = shop().iter().chain(more).map(|object| format!("---\n{object}\n")).collect();
    let read = file::read("a.yaml", text.concat().as_bytes());
    assert!(read.diagnoses.iter().all(|d| d.severity < crate::diagnosis::Severity::Error), "{:?}", read.diagnoses);
    let scan = Scan { found: read.found.into_iter().map(|(found, _)| found).collect(), ..Scan::default() };
    Catalog::default().apply(&scan).0
}

fn mesh(more: &[Json]) -> Mesh {
    mesh_with(Settings::default(), more)
}

fn mesh_with(settings: Settings, more: &[Json]) -> Mesh {
    let objects = objects(more);
    let indexed = super::super::routing::index(&objects, &settings);
    let service = |service: &Arc<crate::resource::service::Service>| {
        super::super::service::key(&service.namespace, &service.name, &settings)
    };
    let gateway = NamespacedName::new("shop", "waypoint");
    let served: Served = [(gateway.clone(), objects.services.values().map(service).collect())].into();
    let made = super::index(&settings, &Around::new(&objects, &settings, &indexed), &served);
    let problems = indexed.problems.into_iter().chain(made.problems).collect();
    Mesh { table: made.tables[&gateway].clone(), clusters: made.clusters[&gateway].clone(), problems }
}

/// A request in words: method and URL, then headers as `name=value`, `:8080` for the port, `~blog` for the client's namespace, `$app=a` for a label of it,
/// and `>v1` for the service if its name is not the first label of the host. A namespace may stand before it: `>far/stock`.
struct Sent {
    method: Method,
    scheme: String,
    authority: Authority,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    port: u16,
    service: NamespacedName,
    namespace: Option<String>,
    labels: Option<Labels>,
}

fn sent(line: &str) -> Sent {
    let mut words = line.split(' ');
    let method = Method::from_bytes(words.next().unwrap().as_bytes()).unwrap();
    let (scheme, rest) = words.next().unwrap().split_once("://").unwrap();
    let (authority, target) = rest.split_at(rest.find('/').unwrap());
    let target = path::normalise(&method, target, path::Spelling::Base).unwrap();
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
    let authority = Authority::parse(authority).unwrap();
    let mut service = authority.host().split('.').next().unwrap().to_owned();
    let (mut headers, mut port, mut namespace, mut labels) = (HeaderMap::new(), 80, None, None);
    for word in words {
        match word.split_at(1) {
            (":", number) => port = number.parse().unwrap(),
            ("~", name) => namespace = Some(name.to_owned()),
            (">", name) => service = name.to_owned(),
            ("$", label) => {
                let (key, value) = label.split_once('=').unwrap();
                labels.get_or_insert_with(Labels::new).insert(key.into(), value.into());
            }
            _ => {
                let (name, value) = word.split_once('=').unwrap();
                headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
            }
        }
    }
    let (of, service) = service.split_once('/').unwrap_or(("shop", &service));
    Sent {
        scheme: scheme.to_owned(),
        path: path.to_owned(),
        query: query.map(str::to_owned),
        service: NamespacedName::new(of, format!("{service}.{of}.svc.cluster.local")),
        method,
        authority,
        headers,
        port,
        namespace,
        labels,
    }
}

impl Sent {
    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            gateway: "mesh",
            service: Some(&self.service),
        }
    }
}

fn place(target: &Target) -> String {
    match target {
        Target::Cluster(key) => {
            let name = key.service.name.split('.').next().unwrap();
            let subset = if key.subset.is_empty() { String::new() } else { format!("/{}", key.subset) };
            format!("{name}{subset}:{}", key.port)
        }
        Target::Broken(why) => format!("broken ({why})"),
    }
}

fn shown(changes: &HeaderChanges) -> String {
    let set = changes.set.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
    let add = changes.add.iter().map(|(name, value)| format!("+{name}={}", value.to_str().unwrap()));
    let remove = changes.remove.iter().map(|name| format!("-{name}"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(",")
}

impl Mesh {
    fn decide<T>(&self, line: &str, seed: u64, look: impl FnOnce(&Sent, Result<Decision<'_>, Miss>) -> T) -> T {
        let sent = sent(line);
        let client = Client { identity: None, namespace: sent.namespace.as_deref(), labels: sent.labels.as_ref() };
        look(&sent, pick(&self.table, &sent.request(), &client, &mut StdRng::seed_from_u64(seed)))
    }

    /// What is done with a request, in words. `-` is what a service without rules does.
    fn ask(&self, line: &str) -> String {
        self.asked(line, 7)
    }

    fn asked(&self, line: &str, seed: u64) -> String {
        self.decide(line, seed, |sent, decision| match decision {
            Err(Miss::Host) => "-".to_owned(),
            Err(Miss::Rule) => "404".to_owned(),
            Ok(decision) => said(sent, &decision),
        })
    }

    /// How often of a thousand times each thing is done.
    fn shares(&self, line: &str) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for seed in 0..1000 {
            *counts.entry(self.asked(line, seed)).or_default() += 1;
        }
        counts
    }

    /// What is told of the object called `o`, without that nothing acts on it.
    fn told(&self) -> Vec<String> {
        let own = self.problems.iter().filter(|(key, problem)| &*key.name == "o" && !problem.field.is_empty());
        own.map(|(_, problem)| {
            let mark = problem.severity.to_string().chars().next().unwrap();
            format!("{mark} {}: {}", problem.field.trim_start_matches("spec."), problem.message)
        })
        .collect()
    }
}

fn said(sent: &Sent, decision: &Decision<'_>) -> String {
    let (request, handling) = (sent.request(), decision.handling);
    let mut out = match decision.outcome {
        Outcome::Forward(backend) => place(&backend.target),
        Outcome::Redirect(redirect) => {
            format!("{} {}", redirect.status.as_u16(), redirect.location(&request, decision.condition))
        }
        Outcome::Respond(response) => {
            format!("{} {}", response.status.as_u16(), String::from_utf8_lossy(&response.body))
        }
        Outcome::Closed(why) => return format!("500 {why}"),
    };
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            _ = write!(out, " {name} {value}");
        }
    };
    add("path", decision.rewritten_path(&request).unwrap_or_default());
    add("host", decision.rewritten_authority().map(ToString::to_string).unwrap_or_default());
    add("req", shown(&handling.request));
    add("res", shown(&handling.response));
    if let Outcome::Forward(backend) = decision.outcome {
        add("req", shown(&backend.request));
        add("res", shown(&backend.response));
    }
    add("copy", decision.mirrors.iter().map(|mirror| place(&mirror.target)).collect::<Vec<_>>().join(","));
    add("wait", decision.delay.map(|time| format!("{time:?}")).unwrap_or_default());
    add(
        "fail",
        match decision.abort {
            Some(AbortStatus::Http(status)) => status.as_u16().to_string(),
            Some(AbortStatus::Grpc(code)) => format!("grpc {code}"),
            None => String::new(),
        },
    );
    add("within", handling.timeout.map(|time| format!("{time:?}")).unwrap_or_default());
    if let Some(cors) = &handling.cors {
        add(
            "cors",
            match cors.judge(&sent.method, &sent.headers) {
                CorsVerdict::Pass => "pass".to_owned(),
                CorsVerdict::Answer(headers) => format!("answer {}", listed(&headers)),
                CorsVerdict::Change(changes) => {
                    let mut headers = HeaderMap::new();
                    changes.apply(&mut headers);
                    format!("add {}", listed(&headers))
                }
            },
        );
    }
    out
}

fn listed(headers: &HeaderMap) -> String {
    let mut all: Vec<String> = headers
        .iter()
        .filter(|(name, _)| *name != "vary")
        .map(|(name, value)| {
            format!("{}={}", name.as_str().trim_start_matches("access-control-"), value.to_str().unwrap())
        })
        .collect();
    all.sort();
    all.join(",")
}

/// Objects, and requests to their mesh with what becomes of them.
type Row<'a> = (&'a [Json], &'a [(&'a str, &'a str)]);

/// Asks each mesh of objects each of its requests.
fn check(rows: &[Row<'_>]) {
    for (objects, requests) in rows {
        let mesh = mesh(objects);
        for (line, expected) in *requests {
            assert_eq!(mesh.ask(line), *expected, "{line}\nof {objects:#?}\n{:?}", mesh.problems);
        }
    }
}
