//! Proxies whose routes lead to each other, in what is no HTTP: row F53 of the fault catalogue.
use crate::stage::CHANGE;
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Lab, LabConfig, Need, PodSpec, ServiceSpec, Waypoint, eventually, in_lab};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Longer than any answer takes; a connection that goes in a circle would neither be answered nor end.
const LIMIT: Duration = Duration::from_secs(10);
/// Itself; each other; through a waypoint; and two gateways in a row, which is no circle.
const ITSELF: u16 = 7000;
const EACH_OTHER: u16 = 7001;
const RING: u16 = 7002;
const CHAIN: u16 = 7003;

fn gateway(name: &str) -> String {
    let listener = |port| format!("{{name: p{port}, port: {port}, protocol: TCP}}");
    let listeners = [ITSELF, EACH_OTHER, RING, CHAIN].map(listener).join(", ");
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: default}}\nspec: {{gatewayClassName: undermesh, listeners: [{listeners}]}}\n"
    )
}

fn route(gateway: &str, port: u16, to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{name: {gateway}-{port}, namespace: default}}\nspec:\n  parentRefs: [{{name: {gateway}, sectionName: p{port}}}]\n  rules: [{{backendRefs: [{{name: {to}, port: {port}}}]}}]\n"
    )
}

/// What a visitor of a gateway gets for a line; nothing if the connection ends instead.
fn ask(lab: &Lab, gateway: &Waypoint, port: u16) -> Result<String> {
    let address = SocketAddr::new(gateway.pod.ips()[0], port);
    lab.outside.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).context("connect")?;
        stream.set_read_timeout(Some(LIMIT))?;
        let (mut answer, mut sent) = ([0; 64], stream.write_all(b"x\n"));
        let read = sent.as_mut().ok().map(|()| stream.read(&mut answer));
        match read {
            Some(Ok(count)) => Ok(String::from_utf8_lossy(&answer[..count]).into_owned()),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                anyhow::bail!("the connection goes on for {LIMIT:?}")
            }
            _ => Ok(String::new()),
        }
    })
}

#[test]
fn hardening_F53_what_goes_in_a_circle_is_refused() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let server = lab.add_pod(PodSpec::new("server").label("app", "server").node(2))?;
        let _server = server.serve(["tcp-echo", "--port", "7003", "--prefix", "one"])?;
        lab.add_service(ServiceSpec::new("server").selector(&[("app", "server")]).port("tcp", CHAIN, CHAIN))?;
        for name in ["edge", "other"] {
            let all = [ITSELF, EACH_OTHER, RING, CHAIN].map(|port| (format!("p{port}"), port));
            let service = ServiceSpec::new(&format!("to-{name}")).selector(&[(GATEWAY_NAME, name)]);
            lab.add_service(all.iter().fold(service, |service, (name, port)| service.port(name, *port, *port)))?;
            lab.apply(name, &gateway(name))?;
        }
        let ring = ServiceSpec::new("ring").selector(&[(GATEWAY_NAME, "edge")]).port("tcp", RING, RING);
        lab.add_service(ring.label("istio.io/ingress-use-waypoint", "true").label(USE_WAYPOINT, "waypoint"))?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&server])?;
        lab.add_gateway("default", "waypoint", "undermesh-waypoint", &Default::default())?;
        let waypoint = lab.start_waypoint("default", "waypoint", 2)?;
        let edge = lab.start_gateway("default", "edge", 1, &[])?;
        let other = lab.start_gateway("default", "other", 2, &[])?;
        for (gateway, port, to) in [
            ("edge", ITSELF, "to-edge"),
            ("edge", EACH_OTHER, "to-other"),
            ("other", EACH_OTHER, "to-edge"),
            ("edge", RING, "ring"),
            ("edge", CHAIN, "to-other"),
            ("other", CHAIN, "server"),
        ] {
            lab.apply(&format!("{gateway}-{port}"), &route(gateway, port, to))?;
        }
        eventually("two gateways in a row lead to the server", CHANGE, || {
            let answer = ask(&lab, &edge, CHAIN)?;
            ensure!(answer.starts_with("one"), "{answer:?}");
            Ok(())
        })?;
        let proxies = [&edge, &other, &waypoint];
        let sum = |name: &str| -> Result<f64> { proxies.iter().map(|one| Ok(one.metrics()?.sum(name, &[]))).sum() };
        ensure!(sum("undermesh_circles_refused_total")? == 0.0, "that is no circle");
        for port in [ITSELF, EACH_OTHER, RING] {
            let mut before = (0.0, 0.0);
            let numbers = || {
                Ok::<_, anyhow::Error>((
                    sum("undermesh_circles_refused_total")?,
                    sum("istio_tcp_connections_opened_total")?,
                ))
            };
            eventually(&format!("the circle of port {port} is refused"), CHANGE, || {
                before = numbers()?;
                let answer = ask(&lab, &edge, port)?;
                ensure!(answer.is_empty(), "{answer:?}");
                ensure!(numbers()?.0 > before.0, "it is no circle yet");
                Ok(())
            })?;
            let (refused, opened) = numbers()?;
            ensure!(refused == before.0 + 1.0 && opened - before.1 <= 6.0, "port {port}: {before:?}, {opened} opened");
        }
        let told = proxies.iter().flat_map(|one| one.lines(&["go in a circle", "change the route"])).count();
        ensure!(told > 0, "nobody says it: {}", edge.log());
        Ok(())
    })
}
