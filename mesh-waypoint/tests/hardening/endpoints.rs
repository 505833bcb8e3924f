//! Endpoints of HTTP/2 that misbehave, frame by frame: the client gets an error in time, and what comes after goes over another connection (row B165 in HTTP/2).

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::{Handling, Retries};
use mesh_core::service::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::frames::*;
use super::support::*;
use super::{ASK, VIP};

/// What is said to the first request, which came in this stream; those after it get a good answer.
type Script = fn(u32) -> Vec<u8>;

const PREFACE: usize = 24;

async fn endpoint(script: Script) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut script = Some(script);
        while let Ok((tcp, _)) = listener.accept().await {
            let script = script.take();
            tokio::spawn(async move { serve(tcp, script).await });
        }
    });
    address
}

/// Ends when the other end does.
async fn serve(mut tcp: TcpStream, mut script: Option<Script>) -> Option<()> {
    tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    tcp.read_exact(&mut [0; PREFACE]).await.ok()?;
    let (mut reader, mut writer) = tcp.into_split();
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        reader.read_exact(&mut payload).await.ok()?;
        match kind {
            HEADERS => {
                let stream = u32::from_be_bytes(stream);
                let bytes = script.take().map_or_else(|| good(stream), |script| script(stream));
                // While it is written what comes is read, or both ends wait for the other.
                let written = async { writer.write_all(&bytes).await };
                let mut sink = Vec::new();
                tokio::select! {
                    biased;
                    written = written => written.ok()?,
                    _ = reader.read_to_end(&mut sink) => return None,
                }
            }
            SETTINGS if flags & 1 == 0 => writer.write_all(&frame(SETTINGS, 1, 0, &[])).await.ok()?,
            _ => {}
        }
    }
}

fn head(stream: u32, flags: u8, fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

fn good(stream: u32) -> Vec<u8> {
    head(stream, END_STREAM, &[(b":status", b"200")])
}

fn status(stream: u32, status: &[u8]) -> Vec<u8> {
    head(stream, END_STREAM, &[(b":status", status)])
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// The status that a client of HTTP/2 gets, if it gets all of an answer.
async fn ask(waypoint: &Waypoint) -> Option<StatusCode> {
    let io = TokioIo::new(waypoint.stream(ASK).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut request = get("/");
    *request.uri_mut() = "http://shop/".parse().unwrap();
    let answer = soon("an answer", sender.send_request(request)).await.ok()?;
    let status = answer.status();
    soon("its end", answer.into_body().collect()).await.ok()?;
    Some(status)
}

#[tokio::test]
async fn hardening_B165_an_endpoint_of_HTTP_2_that_misbehaves_costs_its_own_connection() {
    const PUSH_PROMISE: u8 = 5;
    let rows: [(&str, Script); 25] = [
        ("goes away", |_| goaway(0, 0)),
        ("goes away in anger", |_| goaway(0, 11)),
        ("resets the stream", |s| frame(RST_STREAM, 0, s, &1_u32.to_be_bytes())),
        ("refuses the stream", |s| frame(RST_STREAM, 0, s, &7_u32.to_be_bytes())),
        ("heads that do not end", |s| {
            let part = block(&[(b"a", &[b'x'; 16_000])]);
            let rest = frame(CONTINUATION, 0, s, &part).repeat(256);
            [frame(HEADERS, 0, s, &block(&[(b":status", b"200")])), rest].concat()
        }),
        ("empty continuations", |s| {
            let rest = frame(CONTINUATION, 0, s, &[]).repeat(100_000);
            [frame(HEADERS, 0, s, &block(&[(b":status", b"200")])), rest].concat()
        }),
        ("a head of a mebibyte", |s| {
            let part = block(&[(b"a", &[b'x'; 16_000])]);
            let rest = frame(CONTINUATION, 0, s, &part).repeat(65);
            let last = frame(CONTINUATION, END_HEADERS, s, &part);
            [frame(HEADERS, 0, s, &block(&[(b":status", b"200")])), rest, last].concat()
        }),
        ("an index of nothing", |s| frame(HEADERS, END_HEADERS | END_STREAM, s, &[0xff, 0xff, 0xff, 0x7f])),
        ("no status", |s| head(s, END_STREAM, &[(b"a", b"b")])),
        ("a status of two digits", |s| status(s, b"20")),
        ("a status of words", |s| status(s, b"abc")),
        ("a status too large", |s| status(s, b"600")),
        ("a status of no class", |s| status(s, b"099")),
        ("another protocol", |s| status(s, b"101")),
        ("two statuses", |s| head(s, END_STREAM, &[(b":status", b"200"), (b":status", b"200")])),
        ("a field of the connection", |s| head(s, END_STREAM, &[(b":status", b"200"), (b"connection", b"close")])),
        ("a name in capitals", |s| head(s, END_STREAM, &[(b":status", b"200"), (b"A", b"b")])),
        ("a value of two lines", |s| head(s, END_STREAM, &[(b":status", b"200"), (b"a", b"b\r\nc: d")])),
        ("less than it said", |s| {
            [head(s, 0, &[(b":status", b"200"), (b"content-length", b"10")]), frame(DATA, END_STREAM, s, b"four")]
                .concat()
        }),
        ("more than it said", |s| {
            [head(s, 0, &[(b":status", b"200"), (b"content-length", b"1")]), frame(DATA, END_STREAM, s, b"four")]
                .concat()
        }),
        ("data of no stream", |_| frame(DATA, 0, 0, b"data")),
        ("an answer to nobody", |s| good(s + 2)),
        ("a push", |s| {
            let promised = [(s + 1).to_be_bytes().to_vec(), block(&request("GET", &[]))].concat();
            frame(PUSH_PROMISE, END_HEADERS, s, &promised)
        }),
        ("a window too large", |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a frame too large", |_| vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]),
    ];
    let mut wrong = Vec::new();
    for (what, script) in rows {
        let waypoint = waypoint(endpoint(script).await, Duration::from_secs(60)).await;
        let got = ask(&waypoint).await;
        let is_error = got.is_none_or(|status| matches!(status.as_u16(), 502 | 503));
        let next = ask(&waypoint).await;
        if !is_error || next != Some(StatusCode::OK) {
            wrong.push(format!("{what}: {got:?}, then {next:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn hardening_B165_an_endpoint_of_HTTP_2_that_only_makes_noise_is_late() {
    let rows: [(&str, Script); 6] = [
        ("silence", |_| Vec::new()),
        ("streams for nobody", |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0])),
        ("no head, many hints", |s| head(s, 0, &[(b":status", b"103")]).repeat(20_000)),
        ("settings", |_| frame(SETTINGS, 0, 0, &[]).repeat(20_000)),
        ("pings", |_| frame(PING, 0, 0, &[0; 8]).repeat(20_000)),
        ("windows", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(20_000)),
    ];
    for (what, script) in rows {
        let waypoint = waypoint(endpoint(script).await, Duration::from_millis(500)).await;
        let got = ask(&waypoint).await;
        assert!(got.is_some_and(|status| matches!(status.as_u16(), 502..=504)), "{what}: {got:?}");
    }
}

/// Each request is tried once, and has so much time.
async fn waypoint(app: SocketAddr, timeout: Duration) -> Waypoint {
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http2);
    let retries = Retries { attempts: 0, ..Retries::default() };
    let once = Handling { retries, timeout: Some(timeout), ..to("app") };
    Waypoint::start(&[backend], table("app", vec![rule(once)])).await
}
