//! Objects in, what a waypoint does out.

use mesh_core::telemetry::{LogFormat, Metric as CoreMetric};

use super::*;
use crate::resource::{mesh_providers, mesh_telemetry, meta};

const GATEWAY: &str = "gateway.networking.k8s.io";

/// `namespace/name` and what it asks for.
fn objects(all: &[(&str, &str)]) -> BTreeMap<NamespacedName, Object> {
    let one = |(index, (name, spec)): (usize, &(&str, &str))| {
        let name: NamespacedName = name.parse().unwrap();
        let spec = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
        let (namespace, short) = (name.namespace.clone(), name.name.clone());
        let created = i64::try_from(index).ok();
        (name, Arc::new(Routed { namespace, name: short, created, marks: Default::default(), uid: None, spec }))
    };
    all.iter().enumerate().map(one).collect()
}

fn mesh(text: &str) -> MeshTelemetry {
    let (mesh, problems) = read_mesh(text);
    assert!(problems.is_empty(), "{problems:?}");
    mesh
}

fn read_mesh(text: &str) -> (MeshTelemetry, Vec<Problem>) {
    let mut problems = Vec::new();
    let tree = crate::yaml::node::parse(text).unwrap();
    let providers = tree.get("extensionProviders");
    let read = |tree| mesh_providers::read(tree, "mesh.extensionProviders", &mut problems).takers;
    let takers = providers.map(read).unwrap_or_default();
    let mesh = mesh_telemetry::read(&tree, "mesh", takers, &mut problems);
    (mesh, problems)
}

/// What is done by the waypoint `shop/waypoint`, to which `shop/web` is bound, and what is said of the objects.
fn scopes(mesh: &MeshTelemetry, all: &[(&str, &str)]) -> (Scopes, Vec<String>) {
    scopes_at(Stands::BeforeServers, mesh, all)
}

fn scopes_at(stands: Stands, mesh: &MeshTelemetry, all: &[(&str, &str)]) -> (Scopes, Vec<String>) {
    let (objects, settings) = (objects(all), Settings::default());
    let entries = [("shop/web.example.com".parse().unwrap(), "out".into())].into();
    let around = Around { objects: &objects, mesh, settings: &settings, entries };
    let services = ["shop/web.shop.svc.cluster.local", "shop/web.example.com"].map(|name| name.parse().unwrap()).into();
    let mut told = Told::default();
    let has = [("app".to_owned(), "edge".to_owned()), ("tier".to_owned(), "front".to_owned())].into();
    let selects = |labels: &Labels| meta::selects(labels, &has);
    let scopes =
        around.scopes(&"shop/waypoint".parse().unwrap(), ("undermesh-waypoint", stands), &services, selects, &mut told);
    let said = |(key, problem): &(Key, Problem)| format!("{} {}: {}", key.name, problem.field, problem.message);
    (scopes, told.problems.iter().map(said).collect())
}

#[test]
fn what_names_a_service_holds_for_it_and_for_no_host_that_begins_alike() {
    let mesh = mesh("accessLogFile: /dev/stdout");
    let of = |group: &str, kind: &str, name: &str| {
        format!(
            "{{targetRefs: [{{group: '{group}', kind: {kind}, name: {name}}}], accessLogging: [{{disabled: true}}]}}"
        )
    };
    for (what, spec, expected) in [
        ("the service", of("", "Service", "web"), vec!["shop/web.shop.svc.cluster.local"]),
        ("the entry", of("networking.istio.io", "ServiceEntry", "out"), vec!["shop/web.example.com"]),
        ("no entry", of("networking.istio.io", "ServiceEntry", "web"), vec![]),
    ] {
        let (scopes, _) = scopes(&mesh, &[("shop/t", &spec)]);
        let own: Vec<String> = scopes.services.keys().map(ToString::to_string).collect();
        assert_eq!(own, expected, "{what}");
    }
}

/// The logs of the waypoint: `path filter`.
fn logs(scopes: &Scopes) -> Vec<String> {
    let filter = |log: &AccessLog| log.filter.as_ref().map(|filter| format!(" if {filter}")).unwrap_or_default();
    scopes.waypoint.logs.iter().map(|log| format!("{}{}", log.path, filter(log))).collect()
}

#[test]
fn features_TM_7_logs_by_the_most_specific_object() {
    let with_file = mesh("accessLogFile: /dev/stdout\nextensionProviders: [{name: a, envoyFileAccessLog: {path: /a}}]");
    let with_default = mesh(
        "defaultProviders: {accessLogging: [a]}\nextensionProviders: [{name: a, envoyFileAccessLog: {path: /a}}, {name: b, envoyFileAccessLog: {path: /b}}]",
    );
    let target = format!("targetRefs: [{{group: {GATEWAY}, kind: Gateway, name: waypoint}}]");
    let errors = "filter: {expression: 'response.code >= 400'}";
    let root = |entry: &str| ("undermesh-system/root", format!("{{accessLogging: [{entry}]}}"));
    let own = |entry: &str| ("shop/own", format!("{{accessLogging: [{entry}]}}"));
    let gateway = |entry: &str| ("shop/gateway", format!("{{{target}, accessLogging: [{entry}]}}"));
    let none: Vec<(&str, String)> = Vec::new();
    for (mesh, all, expected) in [
        (&MeshTelemetry::default(), none.clone(), &[][..]),
        (&with_file, none.clone(), &["/dev/stdout"]),
        (&with_default, none, &["/a"]),
        // The old settings count only where no object says anything.
        (&with_file, vec![root("{providers: [{name: a}]}")], &["/a"]),
        (&with_default, vec![root("{disabled: true}")], &[]),
        (&with_default, vec![root("{disabled: true}"), own("{disabled: false}")], &["/a"]),
        (&with_default, vec![root("{}"), own(&format!("{{{errors}}}"))], &["/a if response.code >= 400"]),
        (
            &with_default,
            vec![root(&format!("{{{errors}}}")), gateway("{providers: [{name: b}]}")],
            &["/b if response.code >= 400"],
        ),
        (
            &with_default,
            vec![root("{providers: [{name: a}, {name: b}]}"), own("{providers: [{name: b}], disabled: true}")],
            &[],
        ),
        // A client is not on this side.
        (&with_default, vec![own("{match: {mode: CLIENT}, disabled: true}")], &["/a"]),
        // Another namespace's is not ours.
        (&with_default, vec![("far/other", "{accessLogging: [{disabled: true}]}".to_owned())], &["/a"]),
        (
            &with_default,
            vec![("shop/pods", "{selector: {matchLabels: {app: a}}, accessLogging: [{disabled: true}]}".to_owned())],
            &["/a"],
        ),
        // Its own pods: before what is of the namespace, and after nothing but what names a service.
        (
            &with_default,
            vec![
                own("{disabled: true}"),
                ("shop/pods", "{selector: {matchLabels: {app: edge}}, accessLogging: [{disabled: false}]}".to_owned()),
            ],
            &["/a"],
        ),
        (
            &with_default,
            vec![("far/pods", "{selector: {matchLabels: {app: edge}}, accessLogging: [{disabled: true}]}".to_owned())],
            &["/a"],
        ),
        // Labels of the root namespace mean pods there, as in Istio.
        (
            &with_default,
            vec![(
                "undermesh-system/pods",
                "{selector: {matchLabels: {app: edge}}, accessLogging: [{disabled: true}]}".to_owned(),
            )],
            &["/a"],
        ),
        (
            &with_default,
            vec![("shop/all", "{selector: {matchLabels: {}}, accessLogging: [{disabled: true}]}".to_owned())],
            &[],
        ),
        (&MeshTelemetry::default(), vec![own("{providers: [{name: envoy}]}")], &[""]),
    ] {
        let all: Vec<(&str, &str)> = all.iter().map(|(name, spec)| (*name, spec.as_str())).collect();
        let (scopes, said) = scopes(mesh, &all);
        assert_eq!((logs(&scopes), said), (expected.iter().map(|s| (*s).to_owned()).collect(), vec![]), "{all:?}");
    }
}

#[test]
fn what_cannot_be_done_is_told_to_whoever_asks_for_it() {
    let mesh = mesh("extensionProviders: [{name: a, envoyFileAccessLog: {path: /a}}, {name: p, prometheus: {}}]");
    for (spec, expected) in [
        (
            "{accessLogging: [{providers: [{name: x}]}]}",
            "spec.accessLogging[0].providers: \"x\": the mesh settings have no provider of that name",
        ),
        ("{accessLogging: [{providers: [{name: p}]}]}", "spec.accessLogging[0].providers: \"p\": it takes no lines"),
        (
            "{accessLogging: [{}]}",
            "spec.accessLogging[0]: no provider is named, and the mesh settings have no default: nothing is logged",
        ),
        (
            "{accessLogging: [{providers: [{name: a}], filter: {expression: response.cod > 1}}]}",
            "spec.accessLogging[0].filter.expression: a waypoint does not know response.cod of a request",
        ),
        ("{tracing: [{providers: [{name: a}]}]}", "spec.tracing[0].providers[0]: \"a\": it takes no spans"),
        (
            "{tracing: [{customTags: {t: {formatter: {value: '%NOPE%'}}}}]}",
            "spec.tracing[0].customTags.t.formatter.value: the operator %NOPE% is not known at character 1",
        ),
        (
            "{metrics: [{overrides: [{match: {customMetric: m}}]}]}",
            "spec.metrics[0].overrides[0].match.customMetric: a waypoint makes Istio's metrics only: it has no effect",
        ),
        (
            "{metrics: [{overrides: [{tagOverrides: {t: {value: 'nope('}}}]}]}",
            "spec.metrics[0].overrides[0].tagOverrides.t.value: it is no expression",
        ),
        ("{metrics: [{overrides: [{tagOverrides: {t-t: {value: \"'a'\"}}}]}]}", "\"t-t\" is not the name of a label"),
        (
            "{metrics: [{providers: [{name: x}]}]}",
            "spec.metrics[0].providers[0]: numbers are not sent to x: they are scraped",
        ),
        (
            "{metrics: [{reportingInterval: 5s}]}",
            "spec.metrics[0].reportingInterval: numbers are as new as the scrape: it has no effect",
        ),
    ] {
        let (_, said) = scopes(&mesh, &[("shop/own", spec)]);
        assert!(said.len() == 1 && said[0].contains(expected), "{spec}: {said:?}");
    }
    // A filter that is none keeps nothing back: the waypoint is told of it all the same.
    let (scopes, _) = scopes(
        &mesh,
        &[("shop/own", "{accessLogging: [{providers: [{name: a}], filter: {expression: response.cod > 1}}]}")],
    );
    assert_eq!(logs(&scopes), ["/a if response.cod > 1"]);
}

#[test]
fn of_several_objects_for_one_thing_the_oldest_counts() {
    let mesh = MeshTelemetry::default();
    let log = "{accessLogging: [{providers: [{name: envoy}]}]}";
    let (scopes, said) = scopes(&mesh, &[("shop/first", log), ("shop/second", "{accessLogging: [{disabled: true}]}")]);
    assert_eq!(logs(&scopes), [""]);
    assert_eq!(said, ["second spec: Telemetry first is older and for the same: this one does not count there"]);
    // By name and by labels is the same.
    let (named, selecting) = (
        format!(
            "{{targetRefs: [{{group: {GATEWAY}, kind: Gateway, name: waypoint}}], accessLogging: [{{disabled: true}}]}}"
        ),
        "{selector: {matchLabels: {app: edge}}, accessLogging: [{providers: [{name: envoy}]}]}",
    );
    let (scopes, said) = self::scopes(&mesh, &[("shop/first", selecting), ("shop/second", &named)]);
    assert_eq!((logs(&scopes), said.len()), (vec![String::new()], 1));
}

#[test]
fn features_TM_6_metrics_are_changed_by_each_object_in_turn() {
    let mesh = MeshTelemetry::default();
    let (scopes, said) = scopes(
        &mesh,
        &[
            (
                "undermesh-system/root",
                "{metrics: [{overrides: [{tagOverrides: {source_principal: {operation: REMOVE}, host: {value: request.host}}}]}]}",
            ),
            (
                "shop/own",
                "{metrics: [{providers: [{name: prometheus}], overrides: [{match: {metric: REQUEST_SIZE}, disabled: true}, {match: {metric: REQUEST_COUNT, mode: CLIENT}, disabled: true}, {match: {metric: REQUEST_COUNT}, tagOverrides: {host: {operation: REMOVE}}}]}]}",
            ),
        ],
    );
    assert_eq!(said, [""; 0]);
    let rules = &scopes.waypoint.metrics;
    assert_eq!(rules.len(), CoreMetric::ALL.len());
    assert!(rules[&CoreMetric::RequestSize].disabled && !rules[&CoreMetric::RequestCount].disabled);
    let tag = |metric, name: &str| rules[&metric].tags[name].clone();
    assert_eq!(tag(CoreMetric::RequestCount, "host"), None);
    assert_eq!(tag(CoreMetric::RequestDuration, "host").as_deref(), Some("request.host"));
    assert_eq!(tag(CoreMetric::TcpSentBytes, "source_principal"), None);
}

#[test]
fn features_TM_9_spans_by_the_nearest_object_and_of_single_services() {
    let zipkin = "extensionProviders: [{name: z, zipkin: {service: tracing/zipkin.tracing.svc.cluster.local, port: 9411}}, {name: o, opentelemetry: {service: otel.example, port: 4317, maxTagLength: 9}}]\n";
    let on = mesh(&format!("{zipkin}enableTracing: true\ndefaultProviders: {{tracing: [z]}}"));
    let off = mesh(zipkin);
    let (none, _) = scopes(&off, &[]);
    assert_eq!(none.waypoint.tracing, None);
    let (default, _) = scopes(&on, &[]);
    let tracing = default.waypoint.tracing.clone().unwrap();
    let collector = tracing.collector.unwrap();
    assert_eq!((&*collector.host, collector.port), ("zipkin.tracing.svc.cluster.local", 9411));
    // One of a hundred, unless somebody says it.
    assert_eq!(tracing.share.parts(), 10_000);
    let (scopes, said) = scopes(
        &on,
        &[
            (
                "undermesh-system/root",
                "{tracing: [{randomSamplingPercentage: 100, customTags: {a: {literal: {value: b}}, h: {header: {name: x-user, defaultValue: n}}}}]}",
            ),
            ("shop/own", "{tracing: [{providers: [{name: o}], disableContextPropagation: true}]}"),
            (
                "shop/web",
                "{targetRefs: [{kind: Service, name: web}], tracing: [{disableSpanReporting: true, randomSamplingPercentage: 0.1}]}",
            ),
        ],
    );
    assert_eq!(said, [""; 0]);
    let tracing = scopes.waypoint.tracing.clone().unwrap();
    assert_eq!(
        (tracing.share.parts(), tracing.propagate, tracing.tags.len(), tracing.tag_length),
        (1_000_000, false, 2, 9)
    );
    assert_eq!(&*tracing.collector.unwrap().host, "otel.example");
    let web = scopes.of(Some(&"shop/web.shop.svc.cluster.local".parse().unwrap())).tracing.clone().unwrap();
    assert_eq!((web.collector, web.share.parts()), (None, 1_000));
}

#[test]
fn settings_of_logs_and_spans_are_read_or_refused() {
    for (text, expected) in [
        ("accessLogFormat: '%NOPE%'", "error mesh.accessLogFormat: the operator %NOPE% is not known at character 1"),
        ("accessLogEncoding: XML", "error mesh.accessLogEncoding: unknown value \"XML\""),
        (
            "{accessLogEncoding: JSON, accessLogFormat: 'a'}",
            "error mesh.accessLogFormat: it is no object of JSON with texts",
        ),
        (
            "extensionProviders: [{name: a}, {name: a, prometheus: {}}]",
            "error mesh.extensionProviders[1].name: each provider needs a name of its own",
        ),
        (
            "extensionProviders: [{name: a, datadog: {service: b, port: 1}}]",
            "warning mesh.extensionProviders[0]: waypoints do not know providers of this kind",
        ),
        (
            "extensionProviders: [{name: a, zipkin: {service: 'a b', port: 1}}]",
            "error mesh.extensionProviders[0].zipkin.service: \"a b\" is no host",
        ),
        (
            "extensionProviders: [{name: a, zipkin: {service: a}}]",
            "error mesh.extensionProviders[0].zipkin.port: the port is missing",
        ),
        ("extensionProviders: [{name: a, zipkins: {service: a}}]", "unknown field \"zipkins\""),
        (
            "defaultConfig: {tracing: {sampling: 101}}",
            "error mesh.defaultConfig.tracing.sampling: 101 is no percentage",
        ),
        (
            "defaultConfig: {concurrency: 2}",
            "warning mesh.defaultConfig.concurrency: concurrency is not built: it has no effect",
        ),
        ("enableTracing: 7", "error mesh.enableTracing: "),
    ] {
        let (_, problems) = read_mesh(text);
        let said: Vec<_> = problems.iter().map(|p| format!("{} {}: {}", p.severity, p.field, p.message)).collect();
        assert!(said.iter().any(|line| line.contains(expected)), "{text}: {said:?}");
    }
    let json =
        mesh("{accessLogFile: /dev/stderr, accessLogEncoding: JSON, accessLogFormat: '{\"a\": \"%ROUTE_NAME%\"}'}");
    assert!(matches!(json.file.unwrap().format, LogFormat::Json(keys) if keys.len() == 1));
}

#[test]
fn features_TM_6_a_gateway_at_the_edge_is_a_client_and_a_waypoint_stands_before_servers() {
    let mesh = mesh("{extensionProviders: [{name: a, envoyFileAccessLog: {path: /a}}], enableTracing: true}");
    for (mode, waypoint, edge) in
        [("CLIENT", false, true), ("SERVER", true, false), ("CLIENT_AND_SERVER", true, true), ("", true, true)]
    {
        let side = if mode.is_empty() { String::new() } else { format!("mode: {mode}") };
        let spec = format!(
            "{{accessLogging: [{{match: {{{side}}}, providers: [{{name: a}}]}}], tracing: [{{match: {{{side}}}, enableIstioTags: false}}], metrics: [{{overrides: [{{match: {{{side}}}, disabled: true}}]}}]}}"
        );
        for (stands, expected) in [(Stands::BeforeServers, waypoint), (Stands::AtEdge, edge)] {
            let (scopes, said) = scopes_at(stands, &mesh, &[("shop/own", &spec)]);
            let Core { logs, tracing, metrics, .. } = &*scopes.waypoint;
            let found = [!logs.is_empty(), !tracing.as_ref().unwrap().istio_tags, !metrics.is_empty()];
            assert_eq!((found, said), ([expected; 3], vec![]), "{mode} {stands:?}");
        }
    }
}

#[test]
fn features_TM_8_texts_of_lines_end_them() {
    for (format, expected) in [
        ("a %ROUTE_NAME%", "a %ROUTE_NAME%\n"),
        (r"a\n", "a\n"),
        (r"a\nb", "a\nb\n"),
        (r"\n", "\n"),
        // Istio's own, which ends them.
        ("", ""),
    ] {
        let text = format!(
            "{{accessLogFile: /a, accessLogFormat: \"{format}\", extensionProviders: [{{name: a, envoyFileAccessLog: {{path: /a, logFormat: {{text: \"{format}\"}}}}}}]}}"
        );
        let mesh = mesh(&text);
        let expected = LogFormat::Text(expected.into());
        assert_eq!(mesh.file.unwrap().format, expected, "{format:?}");
        let Some(Provider::Log(log)) = mesh.providers.get("a") else { panic!("{:?}", mesh.providers) };
        assert_eq!(log.format, expected, "{format:?}");
    }
}
