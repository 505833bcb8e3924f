//! The operator's servers of a real agent: what they show, what they refuse.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use agent::kernel::privileged;
use agent::{Client, Host, Pod, eventually};

fn request(line: &str, headers: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[test]
fn hardening_B121_B122_B124_bad_requests_to_the_admin_socket() {
    if !privileged("admin socket") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let worker = agent.worker();
    let order = "undermesh-admin: 1\r\n";
    let long = format!("GET /{}", "a".repeat(70_000));
    let filter = format!("POST /logging?level={}", "info,".repeat(3000));
    let rows = [
        ("GET /config_dump".to_owned(), "", 200),
        ("GET /connections".to_owned(), "", 200),
        ("GET /healthz".to_owned(), "", 200),
        ("GET /config_dump".to_owned(), "origin: http://evil\r\n", 403),
        ("POST /drain".to_owned(), "", 403),
        ("POST /quit".to_owned(), "origin: http://evil\r\nundermesh-admin: 1\r\n", 403),
        ("GET /drain".to_owned(), order, 405),
        ("GET /logging?level=debug".to_owned(), order, 405),
        ("POST /config_dump".to_owned(), order, 405),
        ("POST /tap".to_owned(), order, 405),
        ("GET /tap?code=9xx".to_owned(), "", 400),
        ("GET /tap?seconds=1".to_owned(), "origin: http://evil\r\n", 403),
        ("GET /tap?seconds=1&max-rps=1".to_owned(), "", 200),
        ("GET /".to_owned(), "", 404),
        ("GET //config_dump".to_owned(), "", 404),
        ("GET /%2e%2e/config_dump".to_owned(), "", 404),
        ("GET /config_dump/..".to_owned(), "", 404),
        ("GET /debug/pprof/profile?seconds=1000000000".to_owned(), "", 404),
        (long, "", 414),
        ("POST /logging".to_owned(), order, 400),
        ("POST /logging?level=trace,x=../../".to_owned(), order, 400),
        (filter, order, 400),
        ("POST /logging?level=debug,h2=off".to_owned(), order, 200),
    ];
    for (line, headers, expected) in rows {
        let answer = host.admin(&request(&line, headers));
        assert_eq!(status(&answer), expected, "{}: {answer}", &line[..line.len().min(60)]);
    }
    let foreign = "GET /config_dump HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&host.admin(foreign)), 403);
    for garbage in ["", "\r\n\r\n", "GET", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let answer = host.admin(&format!("{garbage}\r\n\r\n"));
        assert!(answer.is_empty() || status(&answer) >= 400, "{garbage:?}: {answer}");
    }
    assert!(host.get("/config_dump").contains("\"logLevel\": \"debug,h2=off\""));
    assert_eq!(agent.worker(), worker);
}

#[test]
fn hardening_B123_the_dump_shows_pods_but_no_secret() {
    if !privileged("config dump") {
        return;
    }
    let host = Host::new();
    std::fs::write(host.folder.path().join("token"), "very-secret-token").unwrap();
    let _agent = host.start();
    let pod = Pod::new(&host, "web");
    Client::greeted(&host).add(&pod);
    let dump = host.get("/config_dump");
    assert!(dump.contains("spiffe://cluster.local/ns/default/sa/app"), "{dump}");
    assert!(dump.contains(&format!("\"netns_inode\": {}", pod.inode())), "{dump}");
    for secret in ["PRIVATE", "BEGIN", "very-secret-token", "Bearer", "authorization:"] {
        assert!(!dump.contains(secret), "{secret}");
    }
    assert!(!host.log().contains("very-secret-token"));
}

#[test]
fn readiness_says_what_is_pending_and_metrics_count_pods() {
    if !privileged("readiness and metrics") {
        return;
    }
    let host = Host::new();
    let _agent = host.start();
    // F9: no control plane, no state: not ready, and it says why.
    let answer = host.http(15021, "/healthz/ready");
    assert_eq!(status(&answer), 500);
    assert!(answer.ends_with("not ready, pending: configuration\n"), "{answer}");
    let pod = Pod::new(&host, "web");
    let client = Client::greeted(&host);
    client.add(&pod);
    for path in ["/metrics", "/stats/prometheus"] {
        let metrics = host.http(15020, path);
        assert_eq!(status(&metrics), 200);
        for line in ["workload_manager_active_proxy_count 1\n", "panics_total 0\n", "mesh_kernel_decisions_total{"] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        // Exposition formats forbid a family twice.
        let families: Vec<&str> = metrics.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        for (index, family) in families.iter().enumerate() {
            assert!(!families[..index].contains(family), "twice: {family}");
        }
    }
    client.del(&pod);
    eventually("the pod is not counted any more", || {
        host.http(15020, "/metrics").contains("workload_manager_active_proxy_count 0\n").then_some(())
    });
    assert_eq!(status(&host.http(15020, "/config_dump")), 404);
    assert_eq!(status(&host.http(15021, "/metrics")), 404);
}

#[test]
fn hardening_B127_orders_drain_and_stop_the_agent() {
    if !privileged("orders") {
        return;
    }
    for order in ["drain", "quit"] {
        let host = Host::new();
        let mut agent = host.start();
        let pod = Pod::new(&host, "web");
        Client::greeted(&host).add(&pod);
        let answer = host.admin(&request(&format!("POST /{order}"), "undermesh-admin: 1\r\ncontent-length: 0\r\n"));
        assert_eq!(status(&answer), 202, "{answer}");
        assert_eq!(agent.wait().code(), Some(0));
    }
}

#[test]
fn hardening_B192_B193_a_wrong_command_line_ends_with_every_reason() {
    if !privileged("command line") {
        return;
    }
    let host = Host::new();
    let run = |change: &dyn Fn(&mut std::process::Command)| {
        let mut command = host.command();
        change(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&|command| {
        command.args(["--metrics", "abc", "--workers", "0", "--mesh-ranges", "198.18.0.0/15,198.18.0.1/24"]);
    });
    assert_eq!(code, Some(64));
    assert!(text.contains("--metrics is \"abc\"") && text.contains("--workers is \"0\""), "{text}");
    let range = "--mesh-ranges is \"198.18.0.1/24\", expected a range without bits after its length: 198.18.0.0/24";
    assert!(text.contains(range), "{text}");
    let (code, text) = run(&|command| {
        command.arg("--nope");
    });
    assert_eq!(code, Some(64), "{text}");
    let (code, text) = run(&|command| {
        command.env("UNDERMESH_WORKERS", "8Gi");
    });
    assert_eq!(
        (code, text.as_str()),
        (Some(78), "mesh-agent: UNDERMESH_WORKERS is \"8Gi\", expected a number from 1 to 512\n")
    );
}

#[test]
fn hardening_B194_a_limit_of_descriptors_below_the_reserve_stops_the_start() {
    if !privileged("command line") {
        return;
    }
    let host = Host::new();
    let command = host.command();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 100 && exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let output = limited.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("the limit of file descriptors must be at least 128"), "{text}");
}

#[test]
fn hardening_B199_an_agent_without_privileges_says_all_that_is_missing_in_one_line() {
    if !privileged("privileges") {
        return;
    }
    use std::os::unix::process::CommandExt;
    let host = Host::new();
    for role in [None, Some("worker")] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command.args(role).args(host.command().get_args());
        // SAFETY: one system call between fork and exec; what is taken from the bounding set is gone after exec.
        unsafe {
            command.pre_exec(|| {
                for capability in [12, 21] {
                    if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = "mesh-agent: the agent needs CAP_NET_ADMIN, CAP_SYS_ADMIN\n";
        assert_eq!((output.status.code(), said.as_ref()), (Some(77), expected));
    }
    assert!(!host.run_dir().exists(), "and leaves nothing");
}

/// The operator's own server is a file, and what listens on the network are metrics and readiness, on the node's addresses only.
#[test]
fn hardening_B120_nothing_for_the_operator_listens_where_pods_are() {
    if !privileged("listeners") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let (client, pod) = (Client::greeted(&host), Pod::new(&host, "pod"));
    client.add(&pod);
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{}/net/{name}", agent.worker())).unwrap();
    let listening = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(3) == Some(&"0A")).then(|| u16::from_str_radix(words[1].rsplit(':').next()?, 16).ok()).flatten()
    };
    let mut ports: Vec<u16> =
        ["tcp", "tcp6"].iter().flat_map(|name| table(name).lines().filter_map(listening).collect::<Vec<_>>()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [15020, 15021], "of the node");
    // A name without a file is for whoever is in the namespace, of any user.
    assert!(!table("unix").lines().any(|line| line.contains(" @")), "{}", table("unix"));
    for ip in [std::net::IpAddr::from([127, 0, 0, 1]), pod.address] {
        for port in [15000, 15020, 15021] {
            let refused = agent::kernel::connect(&pod.app.tcp(ip), (ip, port).into());
            assert!(refused.is_err(), "an app reaches {ip}:{port}");
        }
    }
}

#[test]
fn hardening_B195_a_status_does_not_depend_on_who_reads() {
    let status = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command.args(args).env_clear().stdin(std::process::Stdio::null());
        command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap().code()
    };
    assert_eq!(status(&["--help"]), Some(0));
    assert_eq!(status(&["--unknown"]), Some(64), "the parser's reasons");
    assert_eq!(status(&["--workers", "0"]), Some(64), "our own");
}
