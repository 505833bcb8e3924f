//! Row TM-16: `meshctl tap` shows what passes a waypoint and agents, live, of what it was asked for and nothing else, and costs nobody a request.
use crate::stage::{CHANGE, SOON, Stage, bookinfo, is};
use anyhow::{Context, Result, anyhow, bail, ensure};
use mesh_tests::harness::{Need, Process, ServiceSpec, eventually, in_lab};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: details}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
"#;
const DETAILS: &str = "http://details:9080/details/0";

#[test]
fn features_TM_16_a_tap_shows_what_passes() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        only_what_was_asked_for(&stage)?;
        what_was_refused(&stage)?;
        a_slow_reader_stops_nobody(&stage)?;
        there_are_four_at_most(&stage)?;
        one_that_dies_ends_alone(stage)
    })
}

impl Stage {
    /// A tap of the waypoint, and of agents of these nodes, that has begun.
    fn tap(&self, nodes: &[u8], args: &[&str]) -> Result<Process> {
        let mut sockets = vec![self.lab.waypoint_socket(&self.waypoint.pod.name)];
        for node in nodes {
            sockets.push(self.lab.node(*node).agent()?.admin_socket());
        }
        let mut all: Vec<String> = ["tap", "-n", "default"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        for socket in &sockets {
            all.extend(["--socket".to_owned(), socket.to_string_lossy().into_owned()]);
        }
        let tap = self.lab.meshctl(all)?;
        let begun = eventually("all taps", SOON, || {
            let has_ended = !tap.running();
            let told = tap.stderr();
            match told.matches(" is tapped").count() == sockets.len() {
                true => Ok(Ok(())),
                // Nothing more will be told.
                false if has_ended => Ok(Err(told)),
                false => bail!("{told}"),
            }
        })?;
        begun.map_err(|told| anyhow!("the tap has ended: {told}"))?;
        Ok(tap)
    }
}

fn seen(tap: &Process) -> Vec<Value> {
    let lines = tap.stdout();
    let values = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter(|value| value["kind"] == "request" || value["kind"] == "connection").collect()
}

fn only_what_was_asked_for(stage: &Stage) -> Result<()> {
    let reviews = stage.tap(&[], &["svc/reviews", "--from", "deploy/productpage-v1", "-o", "json"])?;
    let nothing = stage.tap(&[], &["svc/reviews", "--from", "ns/elsewhere", "-o", "json"])?;
    let loads = stage.loads(None, 5)?;
    ensure!(loads.iter().all(|load| load.status == 200), "{loads:?}");
    // Which come later, and are of another service: by them it is known that nothing more of the first comes.
    let details = stage.tap(&[], &["details", "--path", "/details", "--method", "GET"])?;
    stage.bookinfo.client.get(DETAILS)?.success()?;
    let line = details.wait_for("details.default GET details:9080 /details/0 200 - ", SOON)?;
    ensure!(line.contains(" client.default -> "), "{line}");
    eventually("the requests of five pages", SOON, || {
        let found = seen(&reviews);
        ensure!(found.len() == 5, "{found:#?}");
        Ok(())
    })?;
    for value in seen(&reviews) {
        let is_it = value["kind"] == "request"
            && value["destination"]["service"] == "reviews.default.svc.cluster.local"
            && value["source"]["identity"] == "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
            && value["status"] == 200
            && value["path"].as_str().is_some_and(|path| path.starts_with("/reviews/"))
            && value["proxy"].as_str().is_some_and(|proxy| proxy.starts_with("default/waypoint-"));
        ensure!(is_it, "{value:#}");
    }
    ensure!(seen(&nothing).is_empty(), "{}", nothing.stdout());
    Ok(())
}

/// What a policy denies, what leads to nobody, and what agents see of connections.
fn what_was_refused(stage: &Stage) -> Result<()> {
    stage.lab.apply("no-delete", POLICY)?;
    stage.lab.add_service(ServiceSpec::new("nobody").port("http", 9080, 9080))?;
    let denied = stage.tap(&[], &["--code", "403"])?;
    let failed = stage.tap(&[], &["svc/nobody", "--code", "5xx", "--flag", "UH"])?;
    let connections = stage.tap(&[1, 2], &["ns/default", "--only", "connections"])?;
    let client = &stage.bookinfo.client;
    let delete = || client.lab(["get", "-X", "DELETE", DETAILS]);
    eventually("the policy", CHANGE, || is(&delete()?, 403, "RBAC: access denied"))?;
    let line = denied.wait_for(" 403 ", SOON)?;
    ensure!(line.contains("DELETE details:9080 /details/0 403 - ") && line.contains("rbac_access_denied"), "{line}");
    eventually("nobody there", CHANGE, || is(&client.get("http://nobody:9080/x?secret=1")?, 503, ""))?;
    let line = failed.wait_for("nobody.default", SOON)?;
    ensure!(line.contains("GET nobody:9080 /x") && line.contains(" 503 UH "), "{line}");
    // A page's connections that are over: those of the waypoint to pods are kept for the next requests.
    stage.page(None)?;
    connections.wait_for("productpage-v1.default -> reviews.default outbound tcp - ", SOON)?;
    ensure!(!connections.stdout().contains("GET"), "{}", connections.stdout());
    stage.lab.delete("no-delete")
}

fn a_slow_reader_stops_nobody(stage: &Stage) -> Result<()> {
    let mut slow = UnixStream::connect(stage.lab.waypoint_socket(&stage.waypoint.pod.name))?;
    slow.set_read_timeout(Some(SOON))?;
    slow.write_all(b"GET /tap?max-rps=1000 HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let lost = |heard: &str| -> u64 {
        let counts = heard.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        counts.filter(|line| line["kind"] == "counts").filter_map(|line| line["lost"].as_u64()).max().unwrap_or(0)
    };
    // Until more has come than its socket and its buffer hold: each line has about 600 bytes.
    for _ in 0..3 {
        let began = Instant::now();
        let result = stage.bookinfo.client.lab(["get", DETAILS, "--count", "1000"])?;
        ensure!(result.code == 0, "{}", result.stderr);
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(60), "1000 requests took {took:?}");
    }
    let (mut heard, mut piece) = (String::new(), [0; 16384]);
    while lost(&heard) == 0 {
        let read = slow.read(&mut piece).context("no word of what was lost")?;
        ensure!(read > 0, "the tap has ended: {heard}");
        heard.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    Ok(())
}

fn there_are_four_at_most(stage: &Stage) -> Result<()> {
    let held: Vec<Process> = (0..4).map(|_| until_a_place(stage)).collect::<Result<_>>()?;
    let socket = stage.lab.waypoint_socket(&stage.waypoint.pod.name);
    let fifth = || stage.lab.meshctl(["tap".into(), "--socket".into(), socket.clone().into_os_string()]);
    let refused = fifth()?.wait(SOON)?;
    ensure!(refused.code == 1 && refused.stderr.contains("4 taps are open here, which is the most"), "{refused:?}");
    let wrong = stage.lab.meshctl(["tap", "--code", "9xx", "--socket", "/nowhere"])?.wait(SOON)?;
    ensure!(wrong.code == 64 && wrong.stderr.contains("`code=9xx`: a code is 100 to 599"), "{wrong:?}");
    drop(held);
    until_a_place(stage).map(drop)
}

/// A tap, as soon as those of before are known to be gone: of one whose client says nothing that is known when something is next written.
fn until_a_place(stage: &Stage) -> Result<Process> {
    eventually("a place", 3 * SOON, || stage.tap(&[], &["--code", "599"]))
}

fn one_that_dies_ends_alone(stage: Stage) -> Result<()> {
    let tap = stage.tap(&[1], &["ns/default"])?;
    stage.waypoint.process().kill();
    tap.wait_for("it broke off before its time", SOON)?;
    // The agent's tap goes on: it shows what begins now, as often as it is asked for.
    let shown = || tap.stdout().lines().filter(|line| line.contains(" client.default -> ")).count();
    let (before, mut asked) = (shown(), 0);
    eventually("connections of after that", CHANGE, || {
        // Whether it is answered is another matter: the waypoint is gone.
        stage.bookinfo.client.get(DETAILS)?;
        asked += 1;
        let more = shown() - before;
        ensure!(asked >= 5 && more >= 5, "{more} of {asked}: {}", tap.log());
        Ok(())
    })?;
    ensure!(tap.running(), "{}", tap.log());
    Ok(())
}
