//! h2spec, the conformance suite of HTTP/2, against the waypoint: each connection of the suite is a connection in a tunnel. `cargo xtask setup` brings the suite.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::l7::Table;
use mesh_core::service::AppProtocol;
use support::*;
use tokio::net::TcpListener;

/// Cases that fail, and why that is left so.
const KNOWN: [(&str, &str); 1] = [(
    "Sends invalid connection preface",
    "what does not begin as HTTP/2 does is read as HTTP/1.1, and answered so: 400",
)];

/// Where the suite is: what the environment says, on the path, or where `cargo xtask setup` puts it.
fn suite() -> Option<PathBuf> {
    let named = std::env::var_os("H2SPEC").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let kept = cache.map(|cache| cache.join("undermesh/h2spec/h2spec"));
    let places = std::env::split_paths(&paths).map(|folder| folder.join("h2spec"));
    named.into_iter().chain(places).chain(kept).find(|program| program.is_file())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_6_8_h2spec() {
    let Some(suite) = suite() else {
        let reason = "the suite is not on this machine; `cargo xtask setup` brings it where there is Go";
        return skipped("hardening_6_8_h2spec", reason);
    };
    let app = server(|request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        Response::new(Full::new(Bytes::from_static(b"an answer of some bytes")))
    })
    .await;
    let backend = Backend::new("app", "10.96.0.10", &[app]).speaking(AppProtocol::Http11);
    let waypoint = Arc::new(Waypoint::start(&[backend], Table::default()).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let relay = waypoint.clone();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let relay = relay.clone();
            tokio::spawn(async move {
                let mut stream = relay.stream("10.96.0.10:80").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tcp, &mut stream).await;
            });
        }
    });
    let mut command = tokio::process::Command::new(suite);
    command.args(["-h", "127.0.0.1", "-p", &port, "-o", "5"]).stdin(Stdio::null()).kill_on_drop(true);
    let limit = std::time::Duration::from_secs(240);
    let output = tokio::time::timeout(limit, command.output()).await.expect("h2spec: not within 240 s").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<_> = said
        .lines()
        .skip_while(|line| !line.starts_with("Failures:"))
        .filter(|line| line.contains('×'))
        .map(str::trim)
        .collect();
    let new: Vec<_> = failed.iter().filter(|line| !KNOWN.iter().any(|(known, _)| line.contains(known))).collect();
    let total = said.lines().find(|line| line.contains(" tests, ")).unwrap_or_default();
    assert!(total.contains(" tests, ") && new.is_empty(), "{new:#?}\n{said}");
    println!("{total}");
}
