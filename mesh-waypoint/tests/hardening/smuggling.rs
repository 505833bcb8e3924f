//! Requests that say in two ways where they end, in front of real servers: what is hidden in one never reaches a server as a request of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use mesh_waypoint::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ASK;
use super::paths::{guarded_with, server_of_files};
use super::support::*;

const SECRET: &str = "the secret of the test";
/// What a rule refuses, and what is hidden.
const EVIL: &str = "GET /admin/secret HTTP/1.1\r\nhost: shop\r\n\r\n";

/// Lines that say, or seem to say, that the body is in chunks.
const CODINGS: [&str; 30] = [
    "",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "transfer-encoding:chunked\r\n",
    "transfer-encoding: chunked \r\n",
    "transfer-encoding:\tchunked\t\r\n",
    "transfer-encoding : chunked\r\n",
    " transfer-encoding: chunked\r\n",
    "transfer-encoding:\r\n chunked\r\n",
    "transfer-encoding: \"chunked\"\r\n",
    "transfer-encoding: 'chunked'\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding: chunk\r\n",
    "transfer-encoding: chunked, identity\r\n",
    "transfer-encoding: identity, chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked, chunked\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding: chunked;q=1\r\n",
    "transfer-encoding: ,chunked\r\n",
    "transfer-encoding: chunked\u{b}\r\n",
    "transfer-encoding: \u{a0}chunked\r\n",
    "transfer-encoding\0: chunked\r\n",
    "transfer_encoding: chunked\r\n",
    "x: y\ntransfer-encoding: chunked\r\n",
    "x: y\rtransfer-encoding: chunked\r\n",
    "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n",
    "te: chunked\r\n",
];

/// Lines about the length of a body of so many bytes, of which the first five are an empty body in chunks.
fn lengths(whole: usize) -> Vec<String> {
    vec![
        String::new(),
        "content-length: 0\r\n".to_owned(),
        "content-length: 5\r\n".to_owned(),
        format!("content-length: {whole}\r\n"),
        format!("content-length: 5\r\ncontent-length: {whole}\r\n"),
        "content-length: +5\r\n".to_owned(),
        format!("content-length: 5, {whole}\r\n"),
        format!("connection: content-length\r\ncontent-length: {whole}\r\n"),
    ]
}

/// What stands before a server and counts how often that gives the secret away.
async fn tap(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(server).await else { return };
                let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                    (near.into_split(), far.into_split());
                let there = async {
                    let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
                    let _ = far_write.shutdown().await;
                };
                let back = async {
                    let (mut heard, mut bytes) = (Vec::new(), vec![0; 4096]);
                    let mut seen = 0;
                    while let Ok(read @ 1..) = far_read.read(&mut bytes).await {
                        heard.extend_from_slice(&bytes[..read]);
                        let all = heard.windows(SECRET.len()).filter(|piece| *piece == SECRET.as_bytes()).count();
                        counted.fetch_add(all - std::mem::replace(&mut seen, all), Relaxed);
                        if near_write.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                    }
                    let _ = near_write.shutdown().await;
                };
                tokio::join!(there, back);
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn hardening_2_2_no_request_is_smuggled_to_a_real_server() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for (name, text) in [("admin/secret", SECRET), ("public/open", "open"), ("index.html", "home")] {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    for name in ["nginx", "python", "node"] {
        let Some(server) = server_of_files(name, &root).await else {
            skipped("hardening_2_2_no_request_is_smuggled_to_a_real_server", &format!("this machine has no {name}"));
            continue;
        };
        let (app, given) = tap(server.1).await;
        // What the tap would tell.
        let mut direct = TcpStream::connect(app).await.unwrap();
        direct.write_all(EVIL.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let _ = soon("the secret", direct.read_to_end(&mut Vec::new())).await;
        soon("the tap", async {
            while given.load(Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let short = Duration::from_millis(200);
        let settings = Settings { body_timeout: short, header_timeout: short, ..Settings::default() };
        let waypoint = guarded_with(app, settings).await;
        for coding in CODINGS {
            let hidden = format!("0\r\n\r\n{EVIL}");
            let chunked = format!("{:x}\r\n{EVIL}\r\n0\r\n\r\n", EVIL.len());
            let mut rows = Vec::new();
            for body in [hidden, chunked] {
                for method in ["POST", "GET"] {
                    for length in lengths(body.len()) {
                        let head = format!("{method} /public/open HTTP/1.1\r\nhost: shop\r\n{coding}{length}\r\n");
                        rows.push(format!(
                            "{head}{body}GET /public/open HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n"
                        ));
                    }
                }
            }
            let answers = join_all(rows.iter().map(|row| waypoint.raw(ASK, row.as_bytes()))).await;
            for (row, answer) in rows.iter().zip(answers) {
                assert!(!answer.contains(SECRET), "{name} gives the secret for {row:?}: {answer}");
            }
            assert_eq!(given.load(Relaxed), 1, "{name} has given the secret to somebody after {coding:?}");
            // Nobody gets the answer of another's request.
            let open = waypoint.ask(ASK, get("/public/open")).await;
            assert_eq!((open.status(), text(&open)), (StatusCode::OK, "open"), "{name} after {coding:?}");
        }
        // The connections to the server are over, and the tap has seen all that came through them.
        drop(server);
        soon("the end of all connections", async {
            while waypoint.engine.lanes()[0].pool.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(given.load(Relaxed), 1, "{name} has given the secret to somebody");
    }
}
