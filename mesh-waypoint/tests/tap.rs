//! Live taps of a waypoint, over its admin socket: who asks hears what his selector means, nobody who serves waits for him, and nothing secret is told.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    non_snake_case,
    reason = "tests carry the ids of the rows that they prove"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use mesh_core::l7::policy::{Action, List, Operation, Policy, Rule as PolicyRule};
use mesh_core::l7::security::Target;
use mesh_core::l7::{Condition, Handling, PathKind, Retries, Rule, Security, Table};
use mesh_core::service::AppProtocol;
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_core::{NamespacedName, policy::StringMatch};
use mesh_runtime::http::listen_unix;
use mesh_runtime::tap::client::{self, EXIT_BUSY, EXIT_SELECTOR, EXIT_UNAVAILABLE, Lines};
use mesh_runtime::tap::{BUFFER, MOST_TAPS};
use mesh_waypoint::{Settings, admin};
use serde_json::Value;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
const SECRETS: [&str; 4] = ["s3cret", "Bearer", "authorization", "cookie"];

struct Stage {
    waypoint: Waypoint,
    folder: tempfile::TempDir,
}

impl Stage {
    /// A waypoint before an application, with an admin socket.
    async fn new(rules: Vec<Rule>, more: &[Backend], logs: Vec<AccessLog>) -> Self {
        let mut backends = vec![Backend::new("app", VIP, &[echo("app").await])];
        backends.extend(more.iter().map(|b| Backend::new(b.service, b.vip, &b.endpoints).speaking(b.protocol)));
        let telemetry = Arc::new(Telemetry { logs, ..Telemetry::default() });
        let telemetry = Scopes { waypoint: telemetry, ..Scopes::default() };
        let table = if rules.is_empty() { Table::default() } else { table("app", rules) };
        let waypoint = Waypoint::with(&backends, table, Settings { telemetry, ..Settings::default() }).await;
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_unix(&folder.path().join("admin.sock")).unwrap();
        tokio::spawn(admin::serve(listener, waypoint.engine.shared().clone(), waypoint.drain.token()));
        Self { waypoint, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// A tap that has begun.
    async fn tap(&self, query: &str) -> Tap {
        let mut tap = Tap { lines: client::ask(&self.socket(), query).await.unwrap(), rest: String::new() };
        assert_eq!(tap.next().await.unwrap()["kind"], "tap");
        tap
    }

    async fn refused(&self, query: &str) -> (i32, String) {
        match client::ask(&self.socket(), query).await {
            Ok(_) => panic!("{query}: it is let in"),
            Err(refused) => (refused.status, refused.why),
        }
    }

    fn is_tapped(&self) -> bool {
        self.waypoint.engine.shared().taps.is_on()
    }
}

struct Tap {
    lines: Lines,
    rest: String,
}

impl Tap {
    async fn next(&mut self) -> Option<Value> {
        soon("a line", async {
            loop {
                if let Some((line, rest)) = self.rest.split_once('\n') {
                    let value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
                    assert!(!SECRETS.iter().any(|secret| line.contains(secret)), "{line}");
                    self.rest = rest.to_owned();
                    return Some(value);
                }
                self.rest.push_str(std::str::from_utf8(&self.lines.next().await?).unwrap());
            }
        })
        .await
    }

    /// What is seen next.
    async fn seen(&mut self) -> Value {
        loop {
            let value = self.next().await.unwrap();
            if ["request", "connection"].contains(&value["kind"].as_str().unwrap()) {
                return value;
            }
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn at(path: &str, handling: Handling) -> Rule {
    let condition = Condition { path: Some(PathKind::Exact(path.into()).into()), ..Condition::default() };
    Rule { conditions: vec![condition], handling: handling.into() }
}

fn no_posts() -> Security {
    let operation = Operation {
        methods: List { is: vec![StringMatch::Exact("POST".into())], not: Vec::new() },
        ..Operation::default()
    };
    let rule = PolicyRule { to: vec![operation], ..PolicyRule::default() };
    let name = NamespacedName::new("shop", "no-posts");
    let policy = Policy { name, target: Target::All, action: Action::Deny, rules: vec![rule], dry_run: false };
    Security { policies: vec![Arc::new(policy)], ..Security::default() }
}

#[tokio::test]
async fn features_TM_16_a_tap_sees_what_its_selector_means_and_what_was_refused() {
    let more = [
        Backend::new("none", "10.96.0.11", &[]),
        Backend::new("gone", "10.96.0.12", &[nobody().await]),
        Backend::new("bytes", "10.96.0.13", &[]).speaking(AppProtocol::Tcp),
    ];
    let rules = vec![
        at("/uh", to("none")),
        at("/uf", Handling { name: "shop/gone".into(), retries: Retries::default(), ..to("gone") }),
        rule(to("app")),
    ];
    let stage = Stage::new(rules, &more, Vec::new()).await;
    stage.waypoint.state.set_security(Some(Arc::new(no_posts())));
    let mut all = stage.tap("").await;
    let mut failed = stage.tap("code=5xx&to=namespace:shop").await;
    let mut denied = stage.tap("code=403&method=POST&path=/a").await;
    let mut other = stage.tap("to=service:shop/other").await;
    let mut secret = get("/ok?token=s3cret");
    secret.headers_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    secret.headers_mut().insert("cookie", "a=s3cret".parse().unwrap());
    stage.waypoint.ask(ASK, secret).await;
    let post = Request::builder().method(Method::POST).uri("/admin").header("host", "shop").body(Default::default());
    assert_eq!(stage.waypoint.ask(ASK, post.unwrap()).await.status(), 403);
    stage.waypoint.ask(ASK, get("/uh")).await;
    stage.waypoint.ask(ASK, get("/uf")).await;
    stage.waypoint.raw(ASK, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await;

    let line = all.seen().await;
    for (pointer, expected) in [
        ("/kind", "request"),
        ("/method", "GET"),
        ("/authority", "shop"),
        ("/path", "/ok"),
        ("/protocol", "HTTP/1.1"),
        ("/flags", "-"),
        ("/details", "via_upstream"),
        ("/source/identity", CLIENT),
        ("/source/namespace", "shop"),
        ("/destination/service", "app.shop.svc.cluster.local"),
        ("/destination/serviceNamespace", "shop"),
        ("/destination/workload", "app"),
        ("/destination/pod", "app-0"),
    ] {
        assert_eq!(line.pointer(pointer), Some(&expected.into()), "{pointer}: {line:#}");
    }
    assert_eq!((&line["status"], &line["attempts"], &line["query"]), (&200.into(), &1.into(), &Value::Null));
    let brief = |line: &Value| (line["status"].as_u64(), line["flags"].to_string(), line["path"].to_string());
    let mut rest = Vec::new();
    for _ in 0..3 {
        rest.push(all.seen().await);
    }
    let found: Vec<_> = rest.iter().map(brief).collect();
    let row = |status, flags: &str, path: &str| (Some(status), format!("\"{flags}\""), format!("\"{path}\""));
    assert_eq!(found, [row(403, "-", "/admin"), row(503, "UH", "/uh"), row(503, "UF,URX", "/uf")]);
    let details = "rbac_access_denied_matched_policy[ns[shop]-policy[no-posts]]";
    assert_eq!((&rest[0]["details"], &rest[0]["attempts"]), (&details.into(), &0.into()));
    let (asked, routed) = (&rest[2]["destination"]["service"], &rest[2]["routedTo"]);
    assert_eq!((asked, routed), (&"app.shop.svc.cluster.local".into(), &"gone.shop.svc.cluster.local".into()));
    assert_eq!((&rest[2]["rule"], &rest[2]["destination"]["pod"]), (&"shop/gone".into(), &"gone-0".into()));
    assert!(rest[2]["failure"].as_str().is_some_and(|why| !why.is_empty()), "{:#}", rest[2]);
    // Refused while it was read: what it asked for is told all the same, as it was written.
    let malformed = all.seen().await;
    let found = (&malformed["status"], &malformed["authority"], &malformed["path"]);
    assert_eq!(found, (&400.into(), &"a".into(), &"/".into()), "{malformed:#}");

    assert_eq!(brief(&failed.seen().await), row(503, "UH", "/uh"));
    assert_eq!(brief(&failed.seen().await), row(503, "UF,URX", "/uf"));
    assert_eq!(brief(&denied.seen().await), row(403, "-", "/admin"));
    // A connection, to which a policy about methods lets nobody; and nothing more was meant by the others.
    let _ = stage.waypoint.raw("10.96.0.13:80", b"\x01\x02").await;
    let line = all.seen().await;
    let found = (&line["kind"], &line["details"], &line["protocol"], &line["destination"]["service"]);
    let expected = ["connection", "rbac_access_denied", "tcp", "bytes.shop.svc.cluster.local"].map(Value::from);
    assert_eq!(found, (&expected[0], &expected[1], &expected[2], &expected[3]), "{line:#}");
    for tap in [&mut failed, &mut denied, &mut other] {
        let counts = tap.next().await.unwrap();
        assert_eq!((&counts["kind"], &counts["lost"], &counts["limited"]), (&"counts".into(), &0.into(), &0.into()));
        assert_eq!(counts["shown"], counts["matched"]);
    }
    drop((all, failed, denied, other));
    until("the end of all taps", || !stage.is_tapped()).await;
}

/// A query may hold a token. The log of an operator who wants it has it, and so has the tap, of the same requests.
#[tokio::test]
async fn features_TM_16_a_query_is_shown_where_the_log_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = |format: &str, filter: Option<&str>| AccessLog {
        path: folder.path().join("log").to_str().unwrap().into(),
        format: LogFormat::Text(format.into()),
        filter: filter.map(Into::into),
    };
    for (log, expected) in [
        (log("%REQ(:PATH)%\n", Some("request.method == 'GET'")), Some("a=b")),
        (log("%REQ(:PATH)%\n", Some("request.method == 'PUT'")), None),
        (log("%REQ(:METHOD)%\n", None), None),
        (log("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%\n", None), Some("a=b")),
    ] {
        let stage = Stage::new(Vec::new(), &[], vec![log.clone()]).await;
        let mut tap = stage.tap("path=/x").await;
        stage.waypoint.ask(ASK, get("/x?a=b")).await;
        assert_eq!(tap.seen().await["query"].as_str(), expected, "{log:?}");
    }
}

#[tokio::test]
async fn features_TM_16_a_rate_a_number_and_a_time_are_limits() {
    let stage = Stage::new(Vec::new(), &[], Vec::new()).await;
    let mut slow = stage.tap("max-rps=2&seconds=2").await;
    for _ in 0..40 {
        stage.waypoint.ask(ASK, get("/")).await;
    }
    let (mut shown, mut last) = (0, Value::Null);
    while let Some(line) = slow.next().await {
        shown += u64::from(line["kind"] == "request");
        last = line;
    }
    assert_eq!(last["kind"], "end", "{last}");
    assert!(shown <= 6 && last["shown"] == shown && last["limited"] == 40 - shown && last["matched"] == 40, "{last}");
    until("its end", || !stage.is_tapped()).await;

    let mut held = Vec::new();
    for _ in 0..MOST_TAPS {
        held.push(stage.tap("").await);
    }
    let (status, why) = stage.refused("").await;
    assert_eq!((status, why.starts_with("4 taps are open here, which is the most")), (EXIT_BUSY, true), "{why}");
    held.pop();
    soon("a place that was given back", async {
        while client::ask(&stage.socket(), "").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let (status, why) = stage.refused("code=9xx").await;
    assert_eq!((status, why.starts_with("`code=9xx`: a code is 100 to 599")), (EXIT_SELECTOR, true), "{why}");
    assert_eq!(stage.refused("nonsense=1").await.0, EXIT_SELECTOR);
    let nowhere = client::ask(Path::new("/nowhere/at/all"), "").await.err().unwrap();
    assert_eq!(
        (nowhere.status, nowhere.why.starts_with("/nowhere/at/all: no proxy answers there")),
        (EXIT_UNAVAILABLE, true)
    );
    for (request, status) in [
        ("GET /tap HTTP/1.1\r\nhost: evil.example\r\n", "403"),
        ("GET /tap HTTP/1.1\r\nhost: localhost\r\norigin: http://evil\r\n", "403"),
        ("POST /tap HTTP/1.1\r\nhost: localhost\r\n", "405"),
        ("GET /config_dump HTTP/1.1\r\nhost: localhost\r\n", "404"),
    ] {
        let mut stream = UnixStream::connect(stage.socket()).await.unwrap();
        stream.write_all(format!("{request}connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("answer", stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}: {answer}");
    }
}

/// Nobody waits for a client that does not read: requests take what they took, and it hears how many lines it has lost.
#[tokio::test]
async fn features_TM_16_a_slow_reader_loses_lines_and_stops_nobody() {
    let stage = Stage::new(Vec::new(), &[], Vec::new()).await;
    let mut stream = UnixStream::connect(stage.socket()).await.unwrap();
    stream.write_all(b"GET /tap?max-rps=1000 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    until("the tap", || stage.is_tapped()).await;
    // At once, as from another lane: what the buffer does not take is lost.
    let taps = &stage.waypoint.engine.shared().taps;
    let line = format!("{{\"kind\":\"filler\",\"of\":\"{}\"}}\n", "x".repeat(2000));
    let filled = Instant::now();
    for _ in 0..950 {
        let now = Instant::now();
        taps.offer(now, now, |_| true, || line.clone());
    }
    assert!(filled.elapsed() < Duration::from_secs(5), "{:?}", filled.elapsed());
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(stage.waypoint.ask(ASK, get("/")).await.status(), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let lost = soon("the counts", async {
        let (mut heard, mut piece) = (String::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut piece).await.unwrap();
            heard.push_str(&String::from_utf8_lossy(&piece[..read]));
            let counts = heard.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let lost = counts.filter(|line| line["kind"] == "counts").filter_map(|line| line["lost"].as_u64()).max();
            if let Some(lost @ 1..) = lost {
                return lost;
            }
        }
    })
    .await;
    assert!(lost >= 950 - BUFFER as u64, "{lost}");
    drop(stream);
    until("its end", || !stage.is_tapped()).await;
}
