//! The plugin as a process: a runtime on one side, a fake agent on the other.
#![allow(clippy::unwrap_used, reason = "test code: a panic is the report")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{FakeAgent, Node, UID, is_root, passed, refusal, run};
use mesh_proto::convert::{CniAnswer, CniCommand};
use mesh_proto::scope::{NamespaceScope, Scope};
use serde_json::{Value, json};

fn why() -> String {
    "because".to_owned()
}

#[test]
fn a_pod_goes_on_when_the_agent_says_so_with_the_result_of_the_plugins_before() {
    if !is_root("a pod goes on") {
        return;
    }
    for answer in [CniAnswer::Ready, CniAnswer::Pass(why())] {
        let node = Node::new();
        let agent = FakeAgent::listen(&node.path("cni.sock"), vec![Some(answer)]);
        passed(&node.add("shop"));
        let requests = agent.requests.lock().unwrap();
        let [(request, inodes)] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(inodes, &[fs::metadata(node.path("netns")).unwrap().ino()]);
        assert_eq!((request.command, request.uid.as_str()), (CniCommand::Add, UID));
        assert_eq!((request.namespace.as_str(), request.name.as_str()), ("shop", "web-0"));
        assert_eq!(request.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["198.18.1.7", "fd00:198::7"]);
        let dns = request.dns.as_ref().unwrap();
        assert_eq!(dns.resolv_conf(), "nameserver 198.19.0.10\nsearch shop.svc.cluster.local\noptions ndots:5\n");
    }
}

#[test]
fn features_EN5_a_pod_that_is_not_ready_is_asked_about_again_and_then_fails_so_that_it_is_tried_again() {
    if !is_root("a pod waits") {
        return;
    }
    let node = Node::new();
    let waits = || Some(CniAnswer::Wait(why()));
    let _agent = FakeAgent::listen(&node.path("cni.sock"), vec![waits(), None, waits(), Some(CniAnswer::Ready)]);
    // An agent that goes in the middle is away; what is in the mesh goes on waiting.
    fs::write(node.path("scope.json"), scope().bytes()).unwrap();
    passed(&node.add("shop"));

    let node = Node::new();
    let _agent = FakeAgent::listen(&node.path("cni.sock"), (0..1000).map(|_| waits()).collect());
    let began = Instant::now();
    let (code, text) = refusal(&node.add("shop").1);
    assert_eq!((code, text.as_str()), (11, "undermesh: held back: because"));
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());

    let node = Node::new();
    let _agent = FakeAgent::listen(&node.path("cni.sock"), vec![Some(CniAnswer::Refused(why()))]);
    assert_eq!(refusal(&node.add("shop").1).0, 100);
}

fn scope() -> Scope {
    let namespaces = [("shop", NamespaceScope::In), ("tools", NamespaceScope::Some), ("plain", NamespaceScope::Out)];
    Scope { namespaces: namespaces.map(|(name, scope)| (name.to_owned(), scope)).into(), ..Scope::new() }
}

#[test]
fn hardening_F45_while_the_agent_is_away_the_file_that_it_left_decides() {
    let rows: [(&str, Option<Vec<u8>>, bool); 9] = [
        ("shop", Some(scope().bytes()), false),
        ("tools", Some(scope().bytes()), false),
        ("plain", Some(scope().bytes()), true),
        ("new", Some(scope().bytes()), false),
        ("kube-system", None, true),
        ("plain", None, false),
        ("plain", Some(b"{".to_vec()), false),
        ("plain", Some(vec![b' '; 17 << 20]), false),
        ("plain", Some(br#"{"version":9,"namespaces":{"plain":"out"},"pods":{}}"#.to_vec()), false),
    ];
    for (namespace, file, passes) in rows {
        let node = Node::new();
        file.into_iter().for_each(|bytes| fs::write(node.path("scope.json"), bytes).unwrap());
        let added = node.add(namespace);
        if passes {
            passed(&added);
        } else {
            let (code, text) = refusal(&added.1);
            assert!(code == 11 && text.contains("the node's agent is away"), "{namespace}: {code} {text}");
        }
    }
}

#[test]
fn hardening_F45_an_agent_that_comes_while_a_pod_waits_is_heard() {
    if !is_root("an agent that comes") {
        return;
    }
    let node = Node::new();
    fs::write(node.path("scope.json"), scope().bytes()).unwrap();
    let mut config = node.config(node.root.path());
    config["waitSeconds"] = json!(60);
    let call = node.call("ADD", "shop");
    let text = config.to_string();
    let waiting = std::thread::spawn(move || run(call, text.as_bytes()));
    // Long enough for it to have asked in vain; whether it has does not change the outcome.
    std::thread::park_timeout(Duration::from_millis(150));
    let _agent = FakeAgent::listen(&node.path("cni.sock"), vec![Some(CniAnswer::Ready)]);
    passed(&(config, waiting.join().unwrap()));
}

#[test]
fn what_is_no_pod_goes_on_and_one_without_uid_does_if_it_is_none_of_ours() {
    let node = Node::new();
    let config = node.config(node.root.path());
    let with = |arguments: &str| {
        let mut call = node.call("ADD", "x");
        call.env("CNI_ARGS", arguments);
        run(call, config.to_string().as_bytes())
    };
    passed(&(config.clone(), with("")));
    fs::write(node.path("scope.json"), scope().bytes()).unwrap();
    passed(&(config.clone(), with("K8S_POD_NAMESPACE=plain;K8S_POD_NAME=a")));
    let (code, text) = refusal(&with("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a"));
    assert!(code == 4 && text.contains("K8S_POD_UID"), "{code} {text}");
}

#[test]
fn the_end_of_a_pod_is_never_held_up() {
    let node = Node::new();
    let config = node.config(node.root.path()).to_string();
    let began = Instant::now();
    let gone = run(node.call("DEL", "shop"), config.as_bytes());
    let mut call = node.call("DEL", "shop");
    call.env_remove("CNI_NETNS");
    let without = run(call, br#"{"cniVersion":"1.0.0"}"#);
    for output in [gone, without] {
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    if !is_root("the end of a pod") {
        return;
    }
    let agent = FakeAgent::listen(&node.path("cni.sock"), vec![Some(CniAnswer::Ready)]);
    assert!(run(node.call("DEL", "shop"), config.as_bytes()).status.success());
    let requests = agent.requests.lock().unwrap();
    assert_eq!((requests[0].0.command, requests[0].1.len()), (CniCommand::Del, 1));
}

#[test]
fn a_check_says_what_the_agent_says_and_nothing_without_it() {
    let node = Node::new();
    let config = node.config(node.root.path()).to_string();
    let check = || run(node.call("CHECK", "shop"), config.as_bytes());
    assert!(check().status.success());
    if !is_root("a check") {
        return;
    }
    let answers = [CniAnswer::Ready, CniAnswer::Pass(why()), CniAnswer::Unknown(why()), CniAnswer::Wait(why())];
    let _agent = FakeAgent::listen(&node.path("cni.sock"), answers.into_iter().map(Some).collect());
    (0..3).for_each(|_| assert!(check().status.success()));
    assert_eq!(refusal(&check()).0, 11);
}

#[test]
fn versions_status_and_collection() {
    let node = Node::new();
    let output = run(node.call("VERSION", "shop"), br#"{"cniVersion":"0.4.0"}"#);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["cniVersion"], "0.4.0");
    assert_eq!(said["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    for command in ["STATUS", "GC"] {
        let output = run(node.call(command, "shop"), br#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[]}"#);
        assert!(output.status.success() && output.stdout.is_empty(), "{command}: {output:?}");
    }
}

#[test]
fn hardening_B138_garbage_gives_an_error_that_runtimes_read() {
    let node = Node::new();
    let good = node.config(node.root.path());
    let changed = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config.to_string().into_bytes()
    };
    let call = |change: &dyn Fn(&mut Command)| {
        let mut call = node.call("ADD", "shop");
        change(&mut call);
        call
    };
    let same = |_: &mut Command| {};
    let rows: Vec<(u64, Command, Vec<u8>)> = vec![
        (4, call(&|c| _ = c.env_clear()), good.to_string().into()),
        (4, call(&|c| _ = c.env("CNI_COMMAND", "EXPLODE")), good.to_string().into()),
        (4, call(&|c| _ = c.env_remove("CNI_NETNS")), good.to_string().into()),
        (5, call(&|c| _ = c.env("CNI_NETNS", "/nonexistent")), good.to_string().into()),
        (6, call(&same), b"".to_vec()),
        (6, call(&same), b"\x00\xff".to_vec()),
        (6, call(&same), vec![b' '; 10 << 20]),
        (1, call(&same), changed("cniVersion", json!("9.0.0"))),
        (1, call(&same), changed("cniVersion", json!(""))),
        (6, call(&same), changed("cniVersion", json!(1))),
        (7, call(&same), changed("prevResult", Value::Null)),
        (6, call(&same), changed("prevResult", json!({ "ips": [{ "address": "nowhere" }] }))),
    ];
    for (index, (code, call, input)) in rows.into_iter().enumerate() {
        let output = run(call, &input);
        assert_eq!(refusal(&output).0, code, "row {index}: {output:?}");
    }
}
