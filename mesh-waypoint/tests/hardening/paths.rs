//! What a rule refuses cannot be reached by another spelling: not with any path that we pass on, and not with real servers behind.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesh_core::l7::path::Spelling;
use mesh_core::l7::{Action, Condition, DirectResponse, Handling, PathKind, Rule};
use mesh_core::service::AppProtocol;
use mesh_waypoint::Settings;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use super::{ASK, VIP};

/// Refuses `/admin` and what is below it, and forwards the rest.
async fn guarded(app: SocketAddr, spelling: Spelling) -> Waypoint {
    guarded_with(app, Settings { spelling, ..Settings::default() }).await
}

pub async fn guarded_with(app: SocketAddr, settings: Settings) -> Waypoint {
    let refused = DirectResponse { status: StatusCode::FORBIDDEN, body: Bytes::from_static(b"refused by a rule") };
    let condition = Condition { path: Some(PathKind::Segments("/admin".into()).into()), ..Condition::default() };
    let deny = Rule { conditions: vec![condition], handling: Handling::new(Action::Respond(refused)).into() };
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    Waypoint::with(&[backend], table("app", vec![deny, rule(to("app"))]), settings).await
}

/// Spellings that lead to `/admin/secret` somewhere: each trick, at each place.
fn tricks() -> Vec<Vec<u8>> {
    const SLASHES: [&str; 9] = ["/", "//", "/./", "\\", "%2f", "%2F", "%5c", "%252f", "/;x/"];
    const NAMES: [&str; 10] =
        ["admin", "%61dmin", "adm%69n", "%41dmin", "ADMIN", "admin;x=1", "admin%20", "admin%00", "admin.", "%2561dmin"];
    const BEFORE: [&str; 14] = [
        "",
        "/a/..",
        "/a/%2e%2e",
        "/a/.%2E",
        "/a/..;",
        "/a/..;x",
        "/a/b/../..",
        "/..",
        "/.",
        "/%2e",
        "/a%2f..",
        "/a/..%2f.",
        "/a\\..",
        "/%c0%ae%c0%ae",
    ];
    let mut all = Vec::new();
    for before in BEFORE {
        for slash in SLASHES {
            all.push(format!("{before}{slash}admin/secret"));
        }
        for name in NAMES {
            all.push(format!("{before}/{name}/secret"));
        }
    }
    for odd in [
        "/admin",
        "/admin/",
        "/admin/secret",
        "/admin?x",
        "/admin/?x",
        "/admin#x",
        "/x#/../admin/secret",
        "admin/secret",
        "*",
        "",
        "?/admin/secret",
        "/x?/../admin/secret",
        "/%u002fadmin/secret",
        "/%c0%afadmin/secret",
        "/%e0%80%afadmin/secret",
        "/%2e/admin/secret",
        "/admin%2fsecret",
        "/admin%5csecret",
        "/a/..//admin/secret",
        "/a/..///admin/secret",
        "/.//admin/secret",
        "/%2f%2fadmin/secret",
        "http://shop/admin/secret",
        "http://shop//admin/secret",
        "http://shop/a/../admin/secret",
        "http://other/admin/secret",
        "/admin/secret/..%2fsecret",
        "/admin\tsecret",
        "/\u{ff0f}admin/secret",
        "/adm\u{131}n/secret",
        "/admin%0d%0a",
        "/admin%09/secret",
        "/%00/admin/secret",
        "/a%00/../admin/secret",
    ] {
        all.push(odd.to_owned());
    }
    let mut all: Vec<Vec<u8>> = all.into_iter().map(String::into_bytes).collect();
    for raw in [
        &b"/\xc0\xafadmin/secret"[..],
        b"/\xffadmin/secret",
        b"/a/\xc0\xae\xc0\xae/admin/secret",
        b"/admin\x00/secret",
        b"/\x01admin/secret",
    ] {
        all.push(raw.to_vec());
    }
    all
}

/// One request with that target, and all of the answer.
async fn ask(waypoint: &Waypoint, target: &[u8]) -> String {
    let request = [b"GET ", target, b" HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n"].concat();
    let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    let _ = stream.write_all(&request).await;
    let mut answer = Vec::new();
    let _ = soon("answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A server that says the target that it was sent, byte for byte.
async fn repeating() -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if !matches!(tcp.read_buf(&mut head).await, Ok(1..)) {
                        return;
                    }
                }
                let target = head.split(|byte| *byte == b' ').nth(1).unwrap().to_vec();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", target.len() + 7);
                let _ = tcp.write_all(&[answer.as_bytes(), b"target:", &target].concat()).await;
            });
        }
    });
    address
}

/// The segments of a path as the most lenient server reads them: escapes resolved, any slash a slash, dots dots
/// whatever follows a semicolon.
fn as_the_most_lenient_reads(target: &str) -> Vec<String> {
    let path = target.split('?').next().unwrap().as_bytes();
    let mut out = Vec::new();
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match digits.filter(|_| *byte == b'%') {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    let text = String::from_utf8_lossy(&out).replace('\\', "/");
    let mut kept: Vec<String> = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap() {
            "" if segment.is_empty() => {}
            "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment.to_owned()),
        }
    }
    kept
}

/// With this target the rule refused, we refused, or what went on is not below `/admin`.
fn judge(target: &[u8], answer: &str) {
    let shown = String::from_utf8_lossy(target);
    if let Some((_, sent)) = answer.split_once("target:") {
        assert!(sent.starts_with('/') || sent == "*", "{shown:?} went on as {sent:?}");
        let read = as_the_most_lenient_reads(sent);
        assert_ne!(read.first().map(String::as_str), Some("admin"), "{shown:?} went on as {sent:?}");
        // What went on is what was looked at: asked for again it is the same.
        let again = mesh_core::l7::path::normalise(&http::Method::GET, sent, Spelling::DecodeAndMergeSlashes);
        assert_eq!(again.as_deref(), Ok(sent), "{shown:?}");
        return;
    }
    let status = answer.get(9..12).unwrap_or("none");
    assert!(["400", "403", "414", "431"].contains(&status), "{shown:?}: {answer}");
}

#[tokio::test]
async fn hardening_B159_no_spelling_goes_around_a_rule() {
    let waypoint = guarded(repeating().await, Spelling::DecodeAndMergeSlashes).await;
    let tricks = tricks();
    assert!(tricks.len() >= 200);
    for target in &tricks {
        judge(target, &ask(&waypoint, target).await);
    }
    assert!(ask(&waypoint, b"/public/admin").await.ends_with("target:/public/admin"));
    assert!(ask(&waypoint, b"/admin/secret").await.ends_with("refused by a rule"));
}

#[tokio::test]
async fn hardening_B159_no_bytes_go_around_a_rule() {
    let waypoint = guarded(repeating().await, Spelling::DecodeAndMergeSlashes).await;
    let piece = prop::sample::select(vec![
        "/", "\\", ".", "..", "admin", "ADMIN", "%61dmin", "%2e", "%2f", "%5C", ";", "%3b", "%25", "2e", "2f", "%C0",
        "%af", "%00", "é", "a", "?", "#", "//", "%", "%u002f", "/./", "\t",
    ]);
    let targets = proptest::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    for round in 0..400 {
        let mut target = targets.new_tree(&mut runner).unwrap().current();
        // Mostly what is no nonsense from its first byte.
        if round % 8 > 0 {
            target.insert(0, '/');
        }
        judge(target.as_bytes(), &ask(&waypoint, target.as_bytes()).await);
    }
}

/// A server of files on a port of its own, with a secret below `admin` and something that is open.
pub struct Server(Child, pub SocketAddr);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NODE: &str = r#"
const http = require("http"), fs = require("fs"), path = require("path");
const [root, host, port] = process.argv.slice(1);
http.createServer((request, response) => {
  let name;
  try { name = path.join(root, decodeURIComponent(new URL("http://a" + request.url).pathname)); } catch (e) { response.statusCode = 400; return response.end(); }
  fs.readFile(name, (error, bytes) => { response.statusCode = error ? 404 : 200; response.end(error ? "" : bytes); });
}).listen(Number(port), host);
"#;

const NGINX: &str = "daemon off; master_process off; pid nginx.pid; error_log stderr emerg; events {}
http { access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
server { listen ADDRESS; root ROOT; } }";

/// The command of that server, if the machine has it.
fn command(name: &str, root: &std::path::Path, at: SocketAddr) -> Option<Command> {
    let program = if name == "python" { "python3" } else { name };
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join(program));
    let program = match (programs.find(|program| program.is_file()), std::env::var_os("NGINX")) {
        (_, Some(nginx)) if name == "nginx" => nginx.into(),
        (program, _) => program?,
    };
    let mut command = Command::new(program);
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    match name {
        "python" => command.args(["-m", "http.server", "--bind", &host, "--directory"]).arg(root).arg(&port),
        "node" => command.args(["-e", NODE, "--"]).arg(root).args([&host, &port]),
        _ => {
            let config = NGINX.replace("ADDRESS", &at.to_string()).replace("ROOT", root.to_str()?);
            let file = root.parent()?.join("nginx.conf");
            std::fs::write(&file, config).ok()?;
            command.arg("-p").arg(root.parent()?).arg("-c").arg(file)
        }
    };
    Some(command)
}

pub async fn server_of_files(name: &str, root: &std::path::Path) -> Option<Server> {
    let at = nobody().await;
    let child =
        command(name, root, at)?.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().ok()?;
    let server = Server(child, at);
    soon("the server", async {
        while TcpStream::connect(at).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    Some(server)
}

#[tokio::test]
async fn hardening_2_3_real_servers_agree_about_what_is_refused() {
    const SECRET: &str = "the secret of the test";
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for (name, text) in
        [("admin/secret", SECRET), ("public/open", "open"), ("admin/index.html", SECRET), ("index.html", "home")]
    {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    for name in ["nginx", "python", "node"] {
        let Some(server) = server_of_files(name, &root).await else {
            skipped("hardening_2_3_real_servers_agree_about_what_is_refused", &format!("this machine has no {name}"));
            continue;
        };
        let strict = guarded(server.1, Spelling::DecodeAndMergeSlashes).await;
        assert!(ask(&strict, b"/public/open").await.ends_with("open"), "{name} serves files");
        let usual = guarded(server.1, Spelling::Base).await;
        for target in tricks() {
            let shown = String::from_utf8_lossy(&target).into_owned();
            let answer = ask(&strict, &target).await;
            assert!(!answer.contains(SECRET), "{name} gives the secret for {shown:?}");
            // By default only what is left to the server, as in Istio: slashes that are doubled or escaped.
            let answer = ask(&usual, &target).await;
            let left = ["//", "%2f", "%5c", "\\"].iter().any(|slash| shown.to_lowercase().contains(slash))
                || shown.contains("/./")
                || shown.contains(";");
            assert!(left || !answer.contains(SECRET), "{name} gives the secret for {shown:?} by default");
        }
    }
}
