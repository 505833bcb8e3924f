//! What a gateway listens for, asked for from inside of the mesh: in tunnels, by clients that have proved who they are.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use mesh_core::listener::{Encryption, Listeners, Topology};
use mesh_transport::hbone::HboneStream;
use mesh_waypoint::refused::Reason;
use rustls::pki_types::ServerName;
use support::edge::{
    Ca, INSIDE, ask, certificates, connect, ends, free, gateway, greeter, http, http1, listen, listener, passage, talk,
    tls, to_service,
};
use support::{Backend, CLIENT, WAYPOINT, Waypoint, echo, noting, soon, text, whole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn tunnel(gateway: &Waypoint, port: u16) -> HboneStream {
    // The port is open before the tunnel asks for it.
    drop(connect(port).await);
    soon("tunnel", gateway.stream(&format!("{INSIDE}:{port}"))).await.unwrap()
}

async fn inside(gateway: &Waypoint, port: u16) -> SendRequest<Full<Bytes>> {
    http1(tunnel(gateway, port).await).await
}

/// Reads what comes, to the end or a reset.
async fn heard(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, say: &[u8]) -> String {
    let _ = stream.write_all(say).await;
    let mut heard = Vec::new();
    let _ = soon("end", stream.read_to_end(&mut heard)).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// The first three bytes of what comes.
async fn begins(mut stream: HboneStream, say: &[u8]) -> String {
    stream.write_all(say).await.unwrap();
    let mut heard = [0; 3];
    soon("first bytes", stream.read_exact(&mut heard)).await.unwrap();
    String::from_utf8_lossy(&heard).into_owned()
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: a.example\r\n\r\n";

#[tokio::test]
async fn features_GW_4_who_comes_in_a_tunnel_is_taken_where_tls_is_the_mesh_s_and_nobody_else() {
    let (noted, mut requests) = noting(StatusCode::OK).await;
    let secure = echo("secure").await;
    let gateway = gateway(&[Backend::new("a", "10.96.0.1", &[noted]), Backend::new("b", "10.96.0.2", &[secure])]).await;
    let (ca, port) = (Ca::new(), free().await);
    gateway.state.set_certificates(certificates(&[("shop/b", ca.credential("b.example"))]));
    listen(
        &gateway,
        vec![
            listener("mesh", port, &["a.example"], Encryption::Mesh, to_service(&["*"], "a")),
            listener("outside", port, &["b.example"], ends("shop/b"), to_service(&["*"], "b")),
        ],
    );
    let mut sender = inside(&gateway, port).await;
    assert_eq!(ask(&mut sender, "a.example").await.status(), StatusCode::OK);
    let seen = requests.recv().await.unwrap();
    let header = |name: &str| seen.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-forwarded-client-cert"), format!("By={WAYPOINT};URI={CLIENT}"));
    assert_eq!(header("x-forwarded-proto"), "https");
    // What another listener serves is asked for in another connection.
    assert_eq!(ask(&mut sender, "b.example").await.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(ask(&mut sender, "c.example").await.status(), StatusCode::NOT_FOUND);
    // With its own TLS in a tunnel that is the other listener.
    let client = ca.client(None, &[]);
    let name = |name: &'static str| ServerName::try_from(name).unwrap();
    let ended = soon("handshake", client.connect(name("b.example"), tunnel(&gateway, port).await)).await.unwrap();
    let mut sender = http1(ended).await;
    assert!(text(&ask(&mut sender, "b.example").await).contains("secure"));
    assert_eq!(ask(&mut sender, "a.example").await.status(), StatusCode::MISDIRECTED_REQUEST);
    // TLS in place of which the tunnel stands does not begin in it, and nobody comes there from outside: with TLS or without.
    assert!(client.connect(name("a.example"), tunnel(&gateway, port).await).await.is_err());
    gateway.refuses(1, &[Reason::Handshake]).await;
    assert!(tls(&client, port, "a.example").await.is_err());
    gateway.refuses(1, &[Reason::NotOfMesh]).await;
    assert_eq!(heard(connect(port).await, GET).await, "");
    gateway.refuses(1, &[Reason::NotTls]).await;
    // Nor are bytes that are no HTTP taken where there are only requests.
    assert_eq!(heard(tunnel(&gateway, port).await, b"\0\0\0\0").await, "");
    gateway.refuses(2, &[Reason::NotTls]).await;
    // A listener that is for the mesh no more cuts nobody, and serves him no more.
    let mut sender = inside(&gateway, port).await;
    assert_eq!(ask(&mut sender, "a.example").await.status(), StatusCode::OK);
    listen(&gateway, vec![listener("outside", port, &["a.example"], ends("shop/b"), to_service(&["*"], "b"))]);
    assert_eq!(ask(&mut sender, "a.example").await.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn features_GW_4_bytes_of_the_mesh_need_no_name() {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let gateway = gateway(&[Backend::new("one", "10.96.0.1", &[one]), Backend::new("two", "10.96.0.2", &[two])]).await;
    let port = free().await;
    let to = |service: &str, name: &str| {
        listener(service, port, &[name], Encryption::Mesh, passage(&["*"], &[(service, 1)]))
    };
    listen(&gateway, vec![to("one", "one.example")]);
    // The server begins, and nothing is waited for.
    assert_eq!(talk(tunnel(&gateway, port).await).await, "one hello");
    assert_eq!(heard(connect(port).await, b"hello").await, "");
    gateway.refuses(2, &[Reason::NotOfMesh]).await;
    // Beside requests, bytes are those that are none.
    let other = listener("http", port, &["web.example"], Encryption::Mesh, to_service(&["*"], "two"));
    listen(&gateway, vec![to("one", "one.example"), other]);
    assert_eq!(begins(tunnel(&gateway, port).await, b"\0\0").await, "one");
    // Of two nobody knows which is meant, but by a name in TLS of the client's own.
    listen(&gateway, vec![to("one", "one.example"), to("two", "two.example")]);
    assert_eq!(heard(tunnel(&gateway, port).await, b"\0\0").await, "");
    gateway.refuses(1, &[Reason::NotTls]).await;
    let hello = support::hello("two.example");
    assert_eq!(begins(tunnel(&gateway, port).await, &hello).await, "two");
}

#[tokio::test]
async fn what_is_listened_for_without_tls_is_reached_in_tunnels_too() {
    let (noted, mut requests) = noting(StatusCode::OK).await;
    let one = greeter("one").await;
    let gateway = gateway(&[Backend::new("a", "10.96.0.1", &[noted]), Backend::new("one", "10.96.0.2", &[one])]).await;
    let (web, tcp) = (free().await, free().await);
    listen(
        &gateway,
        vec![
            http("http", web, &["*"], "a"),
            listener("tcp", tcp, &["*"], Encryption::None, passage(&["*"], &[("one", 1)])),
        ],
    );
    let mut sender = inside(&gateway, web).await;
    let forged = Request::builder().uri("/a").header("host", "a").header("x-forwarded-client-cert", "URI=me");
    let answer = soon("answer", sender.send_request(forged.body(Full::default()).unwrap())).await.unwrap();
    assert_eq!(whole(answer).await.status(), StatusCode::OK);
    let seen = requests.recv().await.unwrap();
    assert_eq!(seen.headers()["x-forwarded-proto"], "http");
    assert!(!seen.headers().contains_key("x-forwarded-client-cert"));
    assert_eq!(talk(tunnel(&gateway, tcp).await).await, "one hello");
    // Where nobody listens, and on ports of the mesh itself, no tunnel ends.
    let nobody = format!("{INSIDE}:{}", free().await);
    assert!(gateway.stream(&nobody).await.is_err());
    assert!(gateway.stream(&format!("{INSIDE}:{}", gateway.address.port())).await.is_err());
}

#[tokio::test]
async fn a_reset_in_a_tunnel_is_one_at_the_endpoint() {
    let endpoint = support::listener().await;
    let gateway = gateway(&[Backend::new("one", "10.96.0.1", &[endpoint.local_addr().unwrap()])]).await;
    let port = free().await;
    listen(&gateway, vec![listener("tcp", port, &["*"], Encryption::None, passage(&["*"], &[("one", 1)]))]);
    let mut stream = tunnel(&gateway, port).await;
    stream.write_all(b"half").await.unwrap();
    let mut half = [0; 4];
    // The connection that saw whether the port is open comes to the endpoint, too, and says nothing.
    let mut tcp = loop {
        let (mut tcp, _) = soon("a connection", endpoint.accept()).await.unwrap();
        if soon("half", tcp.read_exact(&mut half)).await.is_ok() {
            break tcp;
        }
    };
    drop(stream);
    let ended = soon("end", tcp.read(&mut half)).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "an upload that was cut is not whole");
}

#[tokio::test]
async fn hardening_B190_in_tunnels_proxies_in_front_are_believed_that_may_say_who_the_client_is() {
    let (noted, mut requests) = noting(StatusCode::OK).await;
    let gateway = gateway(&[Backend::new("a", "10.96.0.1", &[noted])]).await;
    let port = free().await;
    let listen = |trusted_proxies, proxy_peers: Option<&str>| {
        let proxy_peers = proxy_peers.map(|range| vec![range.parse().unwrap()]);
        let proxy_protocol = proxy_peers.is_some();
        let topology = Topology { trusted_proxies, proxy_protocol, proxy_peers, ..Topology::default() };
        let all = vec![http("http", port, &["*"], "a")];
        gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all).behind(topology)));
    };
    let said = "198.51.100.9";
    let mut client = async |header: &str| {
        let mut stream = tunnel(&gateway, port).await;
        stream.write_all(header.as_bytes()).await.unwrap();
        let mut sender = http1(stream).await;
        let request = Request::builder().uri("/a").header("host", "a").header("x-forwarded-for", said);
        soon("answer", sender.send_request(request.body(Full::default()).unwrap())).await.unwrap();
        requests.recv().await.unwrap().headers()["x-envoy-external-address"].to_str().unwrap().to_owned()
    };
    listen(1, None);
    assert_eq!(client("").await, said);
    listen(1, Some("192.0.2.0/24"));
    assert_eq!(client("").await, "127.0.0.1", "the proxies in front are others");
    listen(0, Some("127.0.0.0/8"));
    assert_eq!(client("PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n").await, "192.0.2.7");
}
