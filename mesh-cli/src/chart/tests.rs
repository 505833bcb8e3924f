//! Tables of values, schemas and charts; and the chart that is built in.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::embed::{self, Files};
use super::object::Reference;
use super::render::{Release, Rendered, object, render};
use super::schema::problems;
use super::values::{Typing, overlay, read, set};

fn release() -> Release {
    Release { name: "undermesh".into(), namespace: "mesh".into() }
}

#[test]
fn values_are_laid_over_each_other() {
    let table = [
        (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 3}}), json!({"a": {"b": 3, "c": 2}})),
        (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
        (json!({"a": {"b": 1}, "d": 1}), json!({"a": null}), json!({"d": 1})),
        (json!({"a": 1}), json!({"a": {"b": {"c": null, "d": 1}}}), json!({"a": {"b": {"c": null, "d": 1}}})),
        (json!({"a": {"b": 1}}), json!({"a": {"b": null, "c": null}, "d": null}), json!({"a": {"c": null}, "d": null})),
        (json!({"a": {"b": 1}}), json!({"a": 2}), json!({"a": 2})),
    ];
    for (mut under, over, expected) in table {
        overlay(&mut under, over.clone());
        assert_eq!(under, expected, "{over}");
    }
}

#[test]
fn set_reads_what_helm_reads() {
    use Typing::{Guess, Text};
    let table = [
        ("a=1", Guess, json!({"a": 1})),
        ("a=1", Text, json!({"a": "1"})),
        ("a.b=true,c=null", Guess, json!({"a": {"b": true}, "c": null})),
        ("a=0,b=007,c=1.5,d=", Guess, json!({"a": 0, "b": "007", "c": "1.5", "d": ""})),
        ("a={x,2},b={}", Guess, json!({"a": ["x", 2], "b": [""]})),
        ("a={}b=c", Guess, json!({"a": [""], "b": "c"})),
        ("a[1].b=x,a[0]=y", Guess, json!({"a": ["y", {"b": "x"}]})),
        (r"a\.b=x\,y\=z", Guess, json!({"a.b": "x,y=z"})),
        ("a=x=y", Guess, json!({"a": "x=y"})),
        // A brace elsewhere is a letter.
        ("a=x{1,b=2", Guess, json!({"a": "x{1", "b": 2})),
        ("a=foo},b=2", Guess, json!({"a": "foo}", "b": 2})),
        (r"a=\{x\,y\},b={x\,y,z}", Guess, json!({"a": "{x,y}", "b": ["x,y", "z"]})),
        ("a={,x}", Guess, json!({"a": ["", "x"]})),
        (
            "image.hub=registry.example:5000/undermesh",
            Guess,
            json!({"image": {"hub": "registry.example:5000/undermesh"}}),
        ),
    ];
    for (text, typing, expected) in table {
        let mut values = json!({});
        set(&mut values, text, typing).unwrap();
        assert_eq!(values, expected, "{text}");
    }
    for text in ["a", "=1", "a..b=1", "a[x]=1", "a[9999]=1", "a=1,a.b=2", "a={x", "a={x}y", "a={{x},y}", "a=1,b"] {
        assert!(set(&mut json!({}), text, Guess).is_err(), "{text}");
    }
}

#[test]
fn a_schema_refuses_what_it_should() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {
            "a": {"type": "integer", "minimum": 1, "maximum": 3},
            "b": {"enum": ["x", "y"]},
            "c": {"type": ["string", "null"], "pattern": "^[a-z]+$"},
            "d": {"type": "array", "items": {"$ref": "#/$defs/word"}, "minItems": 1},
            "e": {"type": "object", "additionalProperties": {"type": "string"}},
            "f": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "$defs": {"word": {"type": "string", "minLength": 1}},
    });
    let table = [
        (json!({"a": 1, "b": "x", "c": null, "d": ["w"], "e": {"k": "v"}, "f": 1}), vec![]),
        (json!({}), vec!["values: a is missing"]),
        (json!({"a": 4}), vec!["a: 4 is more than 3"]),
        (json!({"a": 0}), vec!["a: 0 is less than 1"]),
        (json!({"a": "1"}), vec!["a: it is \"1\", and must be a integer"]),
        (json!({"a": 1, "b": "z"}), vec!["b: it is \"z\", and must be one of \"x\", \"y\""]),
        (json!({"a": 1, "c": "A"}), vec!["c: it is \"A\", and must be like \"^[a-z]+$\""]),
        (json!({"a": 1, "d": [""]}), vec!["d[0]: it is empty"]),
        (json!({"a": 1, "d": []}), vec!["d: fewer than 1 items"]),
        (json!({"a": 1, "e": {"k": 1}}), vec!["e.k: it is 1, and must be a string"]),
        (json!({"a": 1, "f": []}), vec!["f: a list has none of the allowed forms"]),
        (json!({"a": 1, "g": 1}), vec!["g: there is no such value; there are a, b, c, d, e, f"]),
    ];
    for (value, expected) in table {
        assert_eq!(problems(&schema, &value), expected, "{value}");
    }
    assert_eq!(problems(&json!({"uniqueItems": true}), &json!([])).len(), 1, "an unknown keyword is not ignored");
}

fn files(entries: &[(&str, &str)]) -> Files {
    entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn a_chart_becomes_objects_in_the_order_of_making() {
    let files = files(&[
        ("Chart.yaml", "name: c\nversion: 1.2.3\nappVersion: 1.2.0\n"),
        ("values.yaml", "a: 1\nwith: {hook: true}\n"),
        ("files/x", "text"),
        ("templates/_helpers.tpl", "{{ define \"n\" }}{{ .Release.Name }}-{{ .Chart.AppVersion }}{{ end }}"),
        ("templates/NOTES.txt", "{{ .Release.Namespace }} is ready"),
        (
            "templates/all.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: {{ include \"n\" . }}}\nspec: {replicas: {{ .Values.a }}}\n---\n# nothing\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: {{ .Files.Get \"files/x\" }}}\n",
        ),
        ("templates/hook.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: h, annotations: {helm.sh/hook: test}}\n"),
        ("crds/d.yaml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: d}\n"),
    ]);
    let Rendered { definitions, objects, notes, .. } = render(&files, &release(), json!({"a": 3})).unwrap();
    let names: Vec<_> = objects.iter().map(|object| Reference::of(object).unwrap().to_string()).collect();
    assert_eq!(names, ["ServiceAccount text", "Deployment undermesh-1.2.0"]);
    assert_eq!(objects[1]["spec"]["replicas"], 3);
    assert_eq!((definitions.len(), notes.as_str()), (1, "mesh is ready"));
}

#[test]
fn what_is_wrong_with_a_chart_or_its_values_is_said() {
    let with = |template: &'static str| {
        let files = files(&[("Chart.yaml", "name: c"), ("values.yaml", "a: 1"), ("templates/t.yaml", template)]);
        render(&files, &release(), json!({})).err().unwrap_or_default()
    };
    assert!(with("a\n{{ .Values.x.y }}").starts_with("templates/t.yaml:2: "));
    assert!(with("a: b: c").starts_with("templates/t.yaml: "));
    assert_eq!(with("kind: X\nmetadata: {name: n}"), "the chart: an object has no apiVersion");
    assert!(read("- a").is_err() && read("a: [").is_err());
    assert_eq!(read("# nothing\n"), Ok(json!({})));
    // In a file of values it is a slip of the pen; in what a template makes, a value that takes the place of another.
    assert!(read("a: 1\na: 2").is_err());
    assert_eq!(object("a: 1\na: 2"), Ok(json!({"a": 2})));
}

#[test]
fn the_chart_that_is_built_in_renders_with_every_platform() {
    let schema: Value = serde_json::from_str(&embed::files()["values.schema.json"]).unwrap();
    let platforms = schema["properties"]["platform"]["enum"].as_array().cloned().unwrap_or_default();
    assert!(platforms.len() > 3);
    for platform in platforms {
        let given = json!({"platform": platform, "namespace": {"create": true}});
        let rendered = render(&embed::files(), &release(), given).unwrap();
        let kinds: BTreeSet<_> = rendered.objects.iter().filter_map(|o| o["kind"].as_str()).collect();
        for kind in ["Namespace", "ServiceAccount", "ClusterRole", "Deployment", "DaemonSet", "Service"] {
            assert!(kinds.contains(kind), "{platform}: {kinds:?}");
        }
        assert_eq!(rendered.objects[0]["kind"], "Namespace", "{platform}");
        assert!(rendered.definitions.iter().all(|d| d["kind"] == "CustomResourceDefinition"));
        // Everything is where it was asked to be.
        for object in &rendered.objects {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("mesh");
            assert_eq!(namespace, "mesh", "{object}");
        }
    }
}

#[test]
fn the_profile_demo_has_the_gateway_that_samples_of_istio_select() {
    let rendered = |given: Value| render(&embed::files(), &release(), given);
    let gateway =
        |given: Value| rendered(given).unwrap().objects.into_iter().find(|object| object["kind"] == "Gateway");
    assert_eq!(gateway(json!({})), None);
    let demo = gateway(json!({"profile": "demo", "commonLabels": {"team": "a"}})).unwrap();
    let (name, labels) = (&demo["metadata"]["name"], &demo["spec"]["infrastructure"]["labels"]);
    assert_eq!((name, &demo["metadata"]["namespace"]), (&json!("istio-ingressgateway"), &json!("mesh")));
    assert_eq!(labels, &json!({"app": "istio-ingressgateway", "istio": "ingressgateway", "team": "a"}));
    // What `uninstall` knows it by.
    assert_eq!(demo["metadata"]["labels"]["app.kubernetes.io/part-of"], "undermesh");
    let said = &demo["metadata"]["annotations"];
    assert_eq!(said["gateway.istio.io/name-override"], "istio-ingressgateway");
    assert_eq!(said["networking.istio.io/service-type"], "LoadBalancer");
    // It may take nothing from the Gateways of Istio that come after it.
    let listeners = demo["spec"]["listeners"].as_array().unwrap();
    assert!(listeners.iter().all(|one| one["hostname"] == "nobody.invalid"), "{listeners:?}");

    let ingress = json!({"enabled": true, "serviceType": "NodePort", "annotations": {"a": "b"}});
    let alone = gateway(json!({"gateways": {"ingress": ingress}})).unwrap();
    assert_eq!(alone["metadata"]["annotations"]["networking.istio.io/service-type"], "NodePort");
    assert_eq!(alone["spec"]["infrastructure"]["annotations"], json!({"a": "b"}));

    let nobody_makes_it = rendered(json!({"profile": "demo", "gateways": {"enabled": false}})).unwrap_err();
    assert!(nobody_makes_it.contains("gateways.enabled"), "{nobody_makes_it}");
    let unknown = rendered(json!({"profile": "minimal"})).unwrap_err();
    assert!(unknown.contains("profile"), "{unknown}");
}

#[test]
fn the_built_in_chart_refuses_values_that_it_does_not_know() {
    let error = render(&embed::files(), &release(), json!({"agent": {"imge": "x"}})).unwrap_err();
    assert!(error.starts_with("agent.imge: there is no such value"), "{error}");
}
