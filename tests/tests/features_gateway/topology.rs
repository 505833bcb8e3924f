//! What stands before a gateway: row GW-8, and bad headers of the PROXY protocol.
use crate::stage::{CHANGE, HTTPBIN, Stage, behind, edge, stage};
use anyhow::{Result, ensure};
use mesh_tests::harness::{Need, eventually, in_lab};

const LISTENERS: &str = "[{name: http, port: 80, protocol: HTTP}]";
/// Added to the route: what can be seen of an edit.
const LATER: &str =
    "    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-later, value: \"1\"}]}}]\n";
const SETTINGS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata:\n  mesh: |\n    defaultConfig:\n      gatewayTopology: {numTrustedProxies: 1, forwardClientCertDetails: ALWAYS_FORWARD_ONLY}\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const ADDRESSES: [u8; 12] = [198, 51, 100, 22, 203, 0, 113, 7, 0x8b, 0x3e, 0, 80];
/// What a client says of itself.
const SAID: &str = "x-forwarded-for: 198.51.100.9\r\nx-forwarded-client-cert: Hash=1\r\n";

fn version_2(command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
}

/// What httpbin was told of a request behind these bytes.
fn told(stage: &Stage, first: &[u8]) -> Result<String> {
    let answer = stage.visitor(80).behind(first)?.get_with("any.example", "/headers", SAID)?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body)
}

#[test]
fn features_GW_8_who_stands_before_a_gateway_is_believed_and_nobody_else() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage(LISTENERS)?;
        stage.lab.apply("httpbin", HTTPBIN)?;
        stage.becomes("the route", 200, || stage.visitor(80).status("any.example", "/headers"))?;
        let usual = told(&stage, b"")?;
        let is_usual =
            |answer: &str| !answer.contains("\"x-envoy-external-address\":\"198.51.100.") && !answer.contains("Hash=1");
        ensure!(is_usual(&usual), "{usual}");

        // The mesh settings say it for all gateways.
        stage.lab.apply("settings", SETTINGS)?;
        eventually("one proxy in front", CHANGE, || {
            let answer = told(&stage, b"")?;
            ensure!(
                answer.contains("\"x-envoy-external-address\":\"198.51.100.9\"") && answer.contains("Hash=1"),
                "{answer}"
            );
            Ok(())
        })?;
        // A gateway says otherwise of itself.
        let own = "gatewayTopology: {numTrustedProxies: 0, forwardClientCertDetails: SANITIZE}";
        stage.lab.apply("edge", &behind(LISTENERS, own))?;
        eventually("none in front", CHANGE, || {
            let answer = told(&stage, b"")?;
            ensure!(is_usual(&answer), "{answer}");
            Ok(())
        })?;

        stage.lab.apply("edge", &behind(LISTENERS, "gatewayTopology: {numTrustedProxies: 0, proxyProtocol: {}}"))?;
        eventually("a header is asked for", CHANGE, || {
            ensure!(told(&stage, b"").is_err());
            Ok(())
        })?;
        let first = b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n";
        for first in [first.to_vec(), version_2(0x21, 0x11, 12, &ADDRESSES)] {
            let answer = told(&stage, &first)?;
            ensure!(answer.contains("\"x-envoy-external-address\":\"198.51.100.22\""), "{first:?}: {answer}");
        }
        refused(&stage)?;
        // Not everybody may send one.
        let trusting = |peers: &str| {
            let own = format!("gatewayTopology: {{numTrustedProxies: 0, proxyProtocol: {{trustedPeers: [{peers}]}}}}");
            stage.lab.apply("edge", &behind(LISTENERS, &own))
        };
        trusting("192.0.2.0/24")?;
        eventually("a header of a stranger is refused, and counted", CHANGE, || {
            // While the listener is being changed anything may fail.
            ensure!(told(&stage, first).is_err());
            let counted = stage.gateway.metrics()?.sum("undermesh_proxy_protocol_refused_total", &[]);
            ensure!(counted >= 1.0, "{counted} are counted");
            Ok(())
        })?;
        trusting("'::/0', 0.0.0.0/0")?;
        eventually("a header is believed again", CHANGE, || told(&stage, first).map(drop))?;
        // What cannot be read changes nothing, and it is said.
        stage.lab.apply("edge", &behind(LISTENERS, "gatewayTopology: {proxyProtocols: {}}"))?;
        eventually("it is told", CHANGE, || {
            let said = stage.lab.control.log();
            ensure!(said.contains("proxyProtocols"), "{said}");
            Ok(())
        })?;
        stage.lab.apply("httpbin", &format!("{HTTPBIN}{LATER}"))?;
        eventually("an edit that came later", CHANGE, || {
            let answer = told(&stage, first)?;
            ensure!(answer.contains("x-later"), "{answer}");
            Ok(())
        })?;
        ensure!(told(&stage, b"").is_err(), "it has changed something");
        stage.lab.apply("edge", &edge(LISTENERS))?;
        eventually("no header is asked for", CHANGE, || told(&stage, b"").map(drop))
    })
}

/// Connections that begin otherwise are closed without an answer.
fn refused(stage: &Stage) -> Result<()> {
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(108));
    let overrun = [&ADDRESSES[..], &[4, 0, 9, 9]].concat();
    let checksum = [&ADDRESSES[..], &[3, 0, 4, 0, 0, 0, 0]].concat();
    let good = "PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n";
    for (what, first) in [
        ("hardening-B188 too long", long.into_bytes()),
        ("hardening-B188 no end", b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\n".to_vec()),
        ("hardening-B188 lower case", good.to_lowercase().into_bytes()),
        ("hardening-B188 a port", b"PROXY TCP4 198.51.100.22 203.0.113.7 65536 80\r\n".to_vec()),
        ("hardening-B188 another family", b"PROXY TCP4 2001:db8::1 203.0.113.7 1 80\r\n".to_vec()),
        ("hardening-B188 unknown", b"PROXY UNKNOWN\r\n".to_vec()),
        ("hardening-B189 too long", version_2(0x21, 0x11, u16::MAX, &ADDRESSES)),
        ("hardening-B189 too short", version_2(0x21, 0x11, 11, &ADDRESSES[..11])),
        ("hardening-B189 an overrun", version_2(0x21, 0x11, 16, &overrun)),
        ("hardening-B189 a family", version_2(0x21, 0x31, 12, &ADDRESSES)),
        ("hardening-B189 a checksum", version_2(0x21, 0x11, 19, &checksum)),
        ("hardening-B190 twice", [good, good].concat().into_bytes()),
    ] {
        let answer = told(stage, &first);
        ensure!(answer.is_err(), "{what}: {answer:?}");
    }
    Ok(())
}
