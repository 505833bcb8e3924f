//! One AdmissionReview (`admission.k8s.io/v1`), answered. Pure.
//!
//! | object | answer |
//! |---|---|
//! | has errors | refused, with all of them |
//! | has the errors that it had before, and no others | let in, with warnings: whoever repairs something else must be able to |
//! | is being deleted | let in |
//! | has warnings | let in, and the client shows them |
//! | says where requests go | as above, and let in with a warning where nothing acts on its kind; where an Istio runs, errors are warnings |
//! | is of a kind that is not read | let in, with a warning if it is of Istio's security group |

use std::collections::HashSet;

use mesh_runtime::task::contain;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::cluster::decode;
use crate::diagnosis::{Problem, Severity, printable};
use crate::resource::meta::{Head, TypeMeta, head};
use crate::resource::routing::Routing;
use crate::resource::{self, Object, routing};

/// An object that carries it and is not to be kept asks whether anybody is here.
pub const PROBE: &str = "undermesh.io/webhook-probe";
/// API servers cut longer ones.
const WARNING: usize = 256;
/// Values in an object: what is found is some hundred bytes for each of them at worst.
const VALUES: usize = 100_000;
/// Of what is said of a refused object.
const MESSAGE: usize = 4 << 10;
/// Warnings in one answer; all together are cut at 4 KiB.
const WARNINGS: usize = 15;

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Json,
    #[serde(default)]
    old_object: Json,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    uid: String,
    /// The object is let in.
    pub allowed: bool,
    message: String,
    warnings: Vec<String>,
}

impl Answer {
    /// As it goes over the wire.
    pub fn json(&self) -> Json {
        let mut response = json!({ "uid": self.uid, "allowed": self.allowed });
        if !self.warnings.is_empty() {
            response["warnings"] = json!(self.warnings);
        }
        if !self.allowed {
            response["status"] =
                json!({ "status": "Failure", "reason": "Invalid", "code": 422, "message": self.message });
        }
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }
}

/// Answers a review. The error says why it is none. `with_istio`: an Istio runs in the cluster, and what says where requests go is its business.
pub fn review(body: &[u8], with_istio: bool) -> Result<Answer, String> {
    let Review { request } = serde_json::from_slice(body)
        .map_err(|error| format!("not an AdmissionReview of admission.k8s.io/v1: {:?}", error.classify()))?;
    let Request { uid, kind, operation, object, old_object, dry_run } = request;
    let asked = TypeMeta {
        api_version: if kind.group.is_empty() { kind.version } else { format!("{}/{}", kind.group, kind.version) },
        kind: kind.kind,
    };
    let mut answer = Answer { uid, allowed: true, message: String::new(), warnings: Vec::new() };
    let metadata = |object: &Json, field: &str| object.get("metadata").and_then(|m| m.get(field)).cloned();
    if dry_run == Some(true)
        && let Some(nonce) = metadata(&object, "annotations").and_then(|a| a.get(PROBE)?.as_str().map(str::to_owned))
    {
        answer.allowed = false;
        answer.message = probed(&printable(&nonce));
        return Ok(answer);
    }
    let is_written = matches!(operation.as_str(), "CREATE" | "UPDATE");
    if !is_written || metadata(&object, "deletionTimestamp").is_some_and(|at| !at.is_null()) {
        return Ok(answer);
    }
    if has_more_than(&mut { VALUES }, [&object]) {
        answer.allowed = false;
        answer.message = format!("it holds more than {VALUES} values: too many to check, make several objects of it");
        return Ok(answer);
    }
    let problems = problems(&asked, object, with_istio);
    let is_comparable = operation == "UPDATE" && !has_more_than(&mut { VALUES }, [&old_object]);
    let before = if is_comparable { self::problems(&asked, old_object, with_istio) } else { Vec::new() };
    let errors: Vec<&Problem> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    let before: HashSet<&Problem> = before.iter().collect();
    answer.allowed = errors.iter().all(|error| before.contains(error));
    if !answer.allowed {
        answer.message = listed(&errors);
    }
    let others = problems.iter().filter(|problem| match problem.severity {
        Severity::Error => answer.allowed,
        Severity::Warning => true,
        Severity::Note => false,
    });
    answer.warnings = others.map(|problem| shortened(sentence(problem))).take(WARNINGS).collect();
    Ok(answer)
}

/// What is said to a probe, and by nobody else.
pub fn probed(nonce: &str) -> String {
    format!("undermesh is here: {nonce}")
}

fn problems(asked: &TypeMeta, mut object: Json, with_istio: bool) -> Vec<Problem> {
    if let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut)
        && !metadata.contains_key("name")
        && metadata.contains_key("generateName")
    {
        // The API server has yet to make the name up, and makes a good one.
        metadata.insert("name".to_owned(), json!("generated"));
    }
    let tree = decode::tree(object);
    let (head, mut problems) = head(&tree, Some(asked));
    match head {
        Some(Head::Object(key)) => match contain("review", || resource::read(&key, &tree)) {
            Some(read) => {
                // It is let in, and whoever makes it should know what will come of it.
                let is_for_us = |object: &Object| match object {
                    Object::Routing(Routing::Sidecar(sidecar)) if sidecar.spec.outbound_traffic_policy.is_some() => {
                        false
                    }
                    // Whether a ServiceEntry selects it only the joining knows.
                    Object::Routing(Routing::WorkloadEntry(_)) => false,
                    Object::Routing(of) => routing::is_ours(of, with_istio),
                    _ => false,
                };
                // Whether a waypoint or a gateway acts on it only the joining knows: then its status says so. Of a Gateway what acts on it is made when it is
                // let in.
                let inaction = routing::inaction(key.kind)
                    .filter(|_| !routing::is_acted_on(key.kind) && read.outcome.as_ref().is_ok_and(is_for_us));
                // What Istio makes of its objects is not ours to refuse.
                let is_istio_s = with_istio && key.kind.is_routing() && !key.kind.is_shared();
                problems.extend(read.problems.into_iter().map(|problem| match problem.severity {
                    Severity::Error if is_istio_s => Problem { severity: Severity::Warning, ..problem },
                    _ => problem,
                }));
                problems.extend(inaction.map(|why| Problem::warning("", why)));
            }
            None => problems.push(Problem::error("", "the reader failed on it")),
        },
        Some(Head::Other(what)) if what.api_version.starts_with("security.istio.io/") => {
            problems.push(Problem::warning(
                "kind",
                format!("{} is not supported, it has no effect on the mesh", what.kind),
            ));
        }
        _ => {}
    }
    problems
}

/// Whether there are more values than `left`, which is what remains of it afterwards. No deeper than JSON may be (128 levels).
fn has_more_than<'a>(left: &mut usize, values: impl IntoIterator<Item = &'a Json>) -> bool {
    values.into_iter().any(|value| {
        let Some(less) = left.checked_sub(1) else { return true };
        *left = less;
        match value {
            Json::Array(items) => has_more_than(left, items),
            Json::Object(fields) => has_more_than(left, fields.values()),
            _ => false,
        }
    })
}

/// As many of the errors as there is room for.
fn listed(errors: &[&Problem]) -> String {
    let mut text = String::new();
    for (number, error) in errors.iter().enumerate() {
        let next = sentence(error);
        if text.len() + next.len() > MESSAGE {
            let rest = errors.len() - number;
            text += &format!("{}and {rest} more", if text.is_empty() { "" } else { "; " });
            break;
        }
        text += if text.is_empty() { "" } else { "; " };
        text += &next;
    }
    text
}

fn sentence(problem: &Problem) -> String {
    let field = problem.field.trim_end_matches('!');
    let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    printable(&format!("{place}{}{help}", problem.message))
}

fn shortened(mut text: String) -> String {
    if text.len() > WARNING {
        text.truncate(text.floor_char_boundary(WARNING - 3));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: (&str, &str, &str), operation: &str, object: Json, old: Json) -> Answer {
        let (group, version, kind) = kind;
        let body = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u1", "kind": { "group": group, "version": version, "kind": kind }, "operation": operation,
            "object": object, "oldObject": old } });
        review(body.to_string().as_bytes(), false).unwrap()
    }

    const POLICY: (&str, &str, &str) = ("security.istio.io", "v1", "AuthorizationPolicy");
    const PEER: (&str, &str, &str) = ("security.istio.io", "v1beta1", "PeerAuthentication");
    const GATEWAY: (&str, &str, &str) = ("gateway.networking.k8s.io", "v1", "Gateway");
    const MAP: (&str, &str, &str) = ("", "v1", "ConfigMap");

    fn object(spec: Json) -> Json {
        json!({ "metadata": { "name": "p", "namespace": "shop" }, "spec": spec })
    }

    #[test]
    fn objects_are_judged_as_the_sources_judge_them() {
        let settings = |mesh: &str| json!({ "metadata": { "name": "undermesh", "namespace": "undermesh-system" }, "data": { "mesh": mesh } });
        let none = Json::Null;
        let broken = json!({ "rules": [{ "from": [{ "source": { "principles": ["a"] } }] }] });
        let worse = json!({ "rules": [{ "from": [{ "source": { "principles": ["a"] } }] }], "action": "MAYBE" });
        let leaving = json!({ "metadata": { "name": "p", "namespace": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": broken });
        let waypoint = json!({ "gatewayClassName": "undermesh-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] });
        let gateway = json!({ "gatewayClassName": "undermesh", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] });
        let unnamed = json!({ "metadata": { "generateName": "p-", "namespace": "shop" }, "spec": {} });
        for (what, kind, operation, new, old, allowed, message, warnings) in [
            ("good", POLICY, "CREATE", object(json!({ "rules": [{}] })), none.clone(), true, "", 0),
            (
                "a misspelt field",
                POLICY,
                "CREATE",
                object(broken.clone()),
                none.clone(),
                false,
                "spec.rules[0].from[0].source.principles: unknown field \"principles\" (did you mean `principals`?)",
                0,
            ),
            (
                "two errors",
                POLICY,
                "CREATE",
                object(worse.clone()),
                none.clone(),
                false,
                "spec.action: unknown action \"MAYBE\" (write ALLOW or DENY)",
                0,
            ),
            ("as bad as before", POLICY, "UPDATE", object(broken.clone()), object(broken.clone()), true, "", 1),
            (
                "worse than before",
                POLICY,
                "UPDATE",
                object(worse),
                object(broken.clone()),
                false,
                "spec.action: unknown action \"MAYBE\" (write ALLOW or DENY)",
                0,
            ),
            (
                "worse than good",
                POLICY,
                "UPDATE",
                object(broken.clone()),
                object(json!({})),
                false,
                "spec.rules[0].from[0].source.principles: unknown field \"principles\" (did you mean `principals`?)",
                0,
            ),
            ("on its way out", POLICY, "UPDATE", leaving, object(json!({})), true, "", 0),
            ("deleted", POLICY, "DELETE", none.clone(), object(broken), true, "", 0),
            ("no name yet", POLICY, "CREATE", unnamed, none.clone(), true, "", 0),
            (
                "for a waypoint",
                POLICY,
                "CREATE",
                object(json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] })),
                none.clone(),
                true,
                "",
                1,
            ),
            ("a mode", PEER, "CREATE", object(json!({ "mtls": { "mode": "STRICT" } })), none.clone(), true, "", 0),
            (
                "no mode",
                PEER,
                "CREATE",
                object(json!({ "mtls": { "mode": "STRICTLY" } })),
                none.clone(),
                false,
                "spec.mtls.mode: unknown mode \"STRICTLY\" (write STRICT or PERMISSIVE)",
                0,
            ),
            (
                "nothing acts on it",
                ("networking.istio.io", "v1", "Sidecar"),
                "CREATE",
                object(json!({})),
                none.clone(),
                true,
                "",
                1,
            ),
            (
                "agents act on it",
                ("networking.istio.io", "v1", "Sidecar"),
                "CREATE",
                object(json!({ "outboundTrafficPolicy": {} })),
                none.clone(),
                true,
                "",
                0,
            ),
            (
                "who acts on it is to be seen",
                ("security.istio.io", "v1", "RequestAuthentication"),
                "CREATE",
                object(json!({})),
                none.clone(),
                true,
                "",
                0,
            ),
            (
                "a ServiceEntry may select it",
                ("networking.istio.io", "v1", "WorkloadEntry"),
                "CREATE",
                object(json!({ "address": "192.0.2.1" })),
                none.clone(),
                true,
                "",
                0,
            ),
            ("a waypoint", GATEWAY, "CREATE", object(waypoint), none.clone(), true, "", 0),
            ("a gateway", GATEWAY, "CREATE", object(gateway), none.clone(), true, "", 0),
            (
                "a class",
                ("gateway.networking.k8s.io", "v1", "GatewayClass"),
                "CREATE",
                json!({ "metadata": { "name": "c" }, "spec": { "controllerName": crate::resource::routing::reference::CONTROLLER } }),
                none.clone(),
                true,
                "",
                0,
            ),
            (
                "a gateway of Istio's kind, which pods of a Gateway may serve",
                ("networking.istio.io", "v1", "Gateway"),
                "CREATE",
                object(
                    json!({ "selector": { "istio": "egressgateway" }, "servers": [{ "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": ["*"] }] }),
                ),
                none.clone(),
                true,
                "",
                0,
            ),
            ("settings", MAP, "UPDATE", settings("trustDomain: a"), settings(""), true, "", 0),
            (
                "settings that are none",
                MAP,
                "UPDATE",
                settings("trustDomains: a"),
                settings(""),
                false,
                "data.mesh.trustDomains: there is no setting \"trustDomains\" (did you mean `trustDomain`?)",
                0,
            ),
            ("settings that wait", MAP, "UPDATE", settings("udp: deny"), settings(""), true, "", 1),
            (
                "another's map",
                MAP,
                "CREATE",
                json!({ "metadata": { "name": "x", "namespace": "a" }, "data": { "mesh": "[" } }),
                none.clone(),
                true,
                "",
                0,
            ),
        ] {
            let answer = ask(kind, operation, new, old);
            assert_eq!(
                (answer.allowed, answer.message.as_str(), answer.warnings.len()),
                (allowed, message, warnings),
                "{what}: {:?}",
                answer.warnings
            );
            assert_eq!(answer.json()["response"]["uid"], "u1");
        }
    }

    #[test]
    fn where_an_istio_runs_its_kinds_are_its_own() {
        let gateway = json!({ "metadata": { "name": "g", "namespace": "shop" }, "spec": { "gatewayClassName": "x" } });
        for (kind, group, version, object, alone, beside) in [
            ("VirtualService", "networking.istio.io", "v1", object(json!({ "host": ["a"] })), (false, 0), (true, 1)),
            ("EnvoyFilter", "networking.istio.io", "v1alpha3", object(json!({})), (false, 0), (true, 1)),
            ("Gateway", "gateway.networking.k8s.io", "v1", gateway, (false, 0), (false, 0)),
            ("AuthorizationPolicy", "security.istio.io", "v1", object(json!({ "rulez": 1 })), (false, 0), (false, 0)),
        ] {
            let body = json!({ "request": { "uid": "u1", "operation": "CREATE", "object": object,
                "kind": { "group": group, "version": version, "kind": kind } } });
            let answer = |with_istio| {
                let answer = review(body.to_string().as_bytes(), with_istio).unwrap();
                (answer.allowed, answer.warnings.len())
            };
            assert_eq!((answer(false), answer(true)), (alone, beside), "{kind}");
        }
    }

    #[test]
    fn answers_are_reviews() {
        let refused = ask(POLICY, "CREATE", object(json!({ "rulez": 1 })), Json::Null).json();
        assert_eq!(
            refused,
            json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": { "uid": "u1", "allowed": false,
                "status": { "status": "Failure", "reason": "Invalid", "code": 422,
                    "message": "spec.rulez: unknown field \"rulez\" (did you mean `rules`?)" } } })
        );
        let long = "é".repeat(1500);
        let warned = ask(
            POLICY,
            "CREATE",
            object(json!({ "rules": [{ "when": [{ "key": format!("request.headers[{long}]"), "values": ["a"] }] }] })),
            Json::Null,
        );
        assert!(warned.allowed && warned.json()["response"]["warnings"][0].as_str().unwrap().len() <= WARNING);
        let many = ask(POLICY, "CREATE", object(json!({ "rules": vec![0; 50_000] })), Json::Null);
        assert!(!many.allowed && many.message.len() <= MESSAGE + 32, "{}", many.message.len());
        assert!(many.message.ends_with(" more"), "{}", many.message);
        let too_many = || object(json!({ "rules": vec![0; VALUES] }));
        let answer = ask(POLICY, "UPDATE", too_many(), object(json!({})));
        assert!(!answer.allowed && answer.message.contains("too many to check"), "{}", answer.message);
        assert!(ask(POLICY, "UPDATE", object(json!({})), too_many()).allowed, "it may be made smaller");
        for body in ["", "{}", "[]", "{\"request\":{}}", "{\"request\":{\"uid\":1}}"] {
            assert!(review(body.as_bytes(), false).is_err(), "{body}");
        }
    }

    #[test]
    fn a_probe_is_answered_only_if_it_is_not_to_be_kept() {
        let probe = |dry_run| {
            let object =
                json!({ "metadata": { "name": "p", "namespace": "shop", "annotations": { PROBE: "7" } }, "spec": {} });
            let body = json!({ "request": { "uid": "u", "operation": "CREATE", "object": object, "dryRun": dry_run,
                "kind": { "group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy" } } });
            review(body.to_string().as_bytes(), false).unwrap()
        };
        assert_eq!((probe(true).allowed, probe(true).message), (false, "undermesh is here: 7".to_owned()));
        assert!(probe(false).allowed);
    }
}
