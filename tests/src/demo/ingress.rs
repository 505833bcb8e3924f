//! From outside: a gateway that listens outside of the mesh, with TLS, before the page.
use super::tour::{SOON, Stage};
use crate::harness::ingress::{Authority, Visitor};
use crate::harness::{eventually, manifest};
use anyhow::{Result, ensure};
use std::net::SocketAddr;
use std::time::Instant;

const HOST: &str = "www.bookinfo.com";
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: default}\nspec:\n  gatewayClassName: undermesh\n  listeners:\n  - {name: https, port: 443, protocol: HTTPS, hostname: www.bookinfo.com, tls: {certificateRefs: [{name: bookinfo}]}}\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: page, namespace: default}\nspec:\n  parentRefs: [{name: edge}]\n  rules: [{matches: [{path: {value: /productpage}}], backendRefs: [{name: productpage, port: 9080}]}]\n";

impl Stage<'_> {
    pub(super) fn ingress(&mut self) {
        let lab = self.lab;
        self.report.chapter(
            "From outside",
            "A Gateway is served by a process of its own, which ends TLS for the world outside and has an identity in the mesh.",
        );
        self.report.quote(format!("{GATEWAY}---\n{}", ROUTE.trim_end()).as_str());
        let mut edge = None;
        self.report.fact("the page loads over TLS from a machine outside of the cluster", |_| {
            let authority = Authority::new()?;
            let show = || -> Result<()> {
                let pair = authority.issue(&[HOST])?;
                let entries = [("tls.crt", pair.cert.as_str()), ("tls.key", &pair.key)];
                lab.apply("bookinfo-secret", &manifest::secret("default", "bookinfo", &entries))
            };
            show()?;
            lab.apply("edge", GATEWAY)?;
            lab.apply("edge-page", ROUTE)?;
            let gateway = edge.insert(lab.start_gateway("default", "edge", 1, &[])?);
            let address = SocketAddr::new(gateway.pod.ips()[0], 443);
            let visitor = Visitor::new(&lab.outside, address).believing(&authority);
            let before = eventually("the page", SOON, || {
                let mut visit = visitor.tls(HOST)?;
                let page = visit.get(HOST, "/productpage")?;
                ensure!(page.status == 200 && page.body.contains("Simple Bookstore App"), "{}", page.status);
                Ok(visit.shown)
            })?;
            ensure!(visitor.tls_status(HOST, "/login")? == 404, "only the page has a route");
            show()?;
            let start = Instant::now();
            eventually("another certificate", SOON, || {
                ensure!(visitor.tls(HOST)?.shown != before, "it is the same");
                Ok(())
            })?;
            Ok(vec![
                format!("mesh-waypoint  {} on {}, at {address}", gateway.pod.name, gateway.pod.node.name),
                format!(
                    "another certificate was shown {} ms after its Secret was written",
                    start.elapsed().as_millis()
                ),
            ])
        });
        let Some(edge) = edge else { return };
        self.report.fact("without its Gateway nothing listens any more", |_| {
            for file in ["edge", "edge-page", "bookinfo-secret"] {
                lab.delete(file)?;
            }
            lab.stop_waypoint(edge).map(|_| Vec::new())
        });
    }
}
