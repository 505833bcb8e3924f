//! What leaves the mesh: hosts of ServiceEntries, by name, through a waypoint where they are bound to one, and with TLS begun there (row B20, and what of row B19 has a
//! waypoint).
use crate::stage::{CHANGE, SOON};
use anyhow::{Result, ensure};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Lab, Need, eventually, in_lab, plan};

fn entry(labels: &str, ports: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: default, labels: {{{labels}}}}}\n\
         spec: {{hosts: [api.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: {ports}, endpoints: [{{address: {}}}]}}\n",
        plan::outside().v4
    )
}

fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: default}}\n\
         spec: {{host: api.example.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]}}}}\n"
    )
}

#[test]
fn features_B19_B20_SE_7_hosts_outside_of_the_mesh_by_name_and_with_TLS_begun_by_the_waypoint() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client) = Lab::with_client()?;
        let _plain = lab.serve_outside(&["http", "--port", "8080", "--name", "plain"])?;
        let outside = lab.serve_outside_tls("api", "api.example.com")?;
        let url = "http://api.example.com/politics";

        // Nobody knows the name, then the agent does, and its address is one that stands for it.
        ensure!(client.get(url)?.code == 6, "the name is known before anybody says it");
        lab.apply("api", &entry("", "[{number: 80, name: http, protocol: HTTP, targetPort: 8080}]"))?;
        let seen = eventually("the host", CHANGE, || client.get(url)?.success())?.stdout;
        ensure!(seen.contains("\"server\":\"plain\"") && seen.contains("api.example.com"), "{seen}");
        let resolved = client.lab(["resolve", "api.example.com"])?.success()?.stdout;
        ensure!(resolved.contains("240.240."), "{resolved}");

        // Through a waypoint, which is told by its log and its numbers.
        lab.add_gateway("default", "waypoint", "istio-waypoint", &Default::default())?;
        let waypoint = lab.start_waypoint("default", "waypoint", 2)?;
        let label = format!("{USE_WAYPOINT}: waypoint");
        lab.apply("api", &entry(&label, "[{number: 80, name: http, protocol: HTTP, targetPort: 8080}]"))?;
        eventually("a request through the waypoint", CHANGE, || {
            client.get(url)?.success()?;
            let labels = [("destination_service", "api.example.com"), ("response_code", "200")];
            ensure!(waypoint.metrics()?.sum("istio_requests_total", &labels) >= 1.0);
            Ok(())
        })?;

        // Who goes to the endpoint itself goes around it, unless that is refused: then it is in the way as well.
        let direct = format!("http://{}:8080/direct", plan::outside().v4);
        let seen = client.get(&direct)?.success()?.stdout;
        ensure!(client.ips().iter().any(|ip| seen.contains(&ip.to_string())), "{seen}");
        let ports = "[{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
        lab.apply("api", &entry(&format!("{label}, undermesh.io/waypoint-bypass: refuse"), ports))?;
        eventually("no way around the waypoint", CHANGE, || {
            let seen = client.get(&direct)?.success()?.stdout;
            ensure!(waypoint.pod.ips().iter().any(|ip| seen.contains(&ip.to_string())), "{seen}");
            Ok(())
        })?;

        // The port of TLS takes no plain HTTP; with the rule one request of plain HTTP is one answer.
        lab.apply("api", &entry(&label, "[{number: 80, name: http, protocol: HTTP, targetPort: 443}]"))?;
        eventually("a failure of plain HTTP", CHANGE, || {
            ensure!(client.get(url)?.code != 0);
            Ok(())
        })?;
        lab.apply("rule", &rule("{mode: SIMPLE}"))?;
        let seen = eventually("an answer over TLS", CHANGE, || client.get(url)?.success())?.stdout;
        ensure!(seen.contains("\"server\":\"api\"") && seen.contains("/politics"), "{seen}");
        outside.wait_for("sni=api.example.com", SOON)?;

        // SE-7: the entry says whose name is believed where the rule does not.
        let unnamed = entry(&label, "[{number: 80, name: http, protocol: HTTP, targetPort: 443}]");
        let named =
            |name: &str| lab.apply("api", &unnamed.replace("spec: {", &format!("spec: {{subjectAltNames: [{name}], ")));
        named("other.example.com")?;
        eventually("a refusal of another's name", CHANGE, || {
            let answer = client.get(url)?;
            ensure!(answer.stderr.contains("HTTP 503"), "{answer:?}");
            Ok(())
        })?;
        named("api.example.com")?;
        eventually("an answer under the name", CHANGE, || client.get(url)?.success())?;
        lab.apply("api", &unnamed)?;

        // Who answers under another name is nobody.
        lab.apply("rule", &rule("{mode: SIMPLE, sni: other.example.com}"))?;
        eventually("a refusal", CHANGE, || {
            let answer = client.get(url)?;
            ensure!(answer.stderr.contains("HTTP 503"), "{answer:?}");
            ensure!(!waypoint.lines(&["503", "UF", "TLS_error"]).is_empty());
            Ok(())
        })?;
        lab.delete("rule")?;
        lab.delete("api")?;
        eventually("the end of the host", CHANGE, || {
            ensure!(client.get(url)?.code == 6);
            Ok(())
        })
    })
}

const WILDCARD: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: default, labels: {LABELS}}\n\
    spec: {hosts: [\"*.wild.example.com\"], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}]}\n";

#[test]
fn features_B18_B19_SE_5_hosts_of_a_pattern_are_looked_up_by_the_waypoint() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client) = Lab::with_client()?;
        for name in ["a.wild.example.com", "b.wild.example.com"] {
            lab.outside_name(name, &plan::outside().both())?;
        }
        // Its owner would have the waypoint reach what is the mesh's.
        lab.outside_name("inside.wild.example.com", &client.ips())?;
        let _plain = lab.serve_outside(&["http", "--port", "8080", "--name", "plain"])?;
        let tls = lab.serve_outside_tls("tls", "b.wild.example.com")?;
        let get = |host: &str, header: &str| {
            let url = format!("http://{host}/x");
            match header.is_empty() {
                true => client.get(&url),
                false => client.lab(["get", &url, "-H", header]),
            }
        };
        let becomes = |what: &str, host: &str, wanted: &str| {
            eventually(what, CHANGE, || {
                let answer = get(host, "")?;
                ensure!(answer.stderr.contains(wanted), "{answer:?}");
                Ok(answer)
            })
        };
        // Without a waypoint nobody can look.
        lab.apply("wild", &WILDCARD.replace("LABELS", ""))?;
        eventually("a refusal", CHANGE, || {
            let resolved = client.lab(["resolve", "a.wild.example.com"])?.stdout;
            ensure!(resolved.contains("240.240."), "{resolved}");
            ensure!(get("a.wild.example.com", "")?.code == 56);
            Ok(())
        })?;
        lab.add_gateway("default", "waypoint", "istio-waypoint", &Default::default())?;
        let waypoint = lab.start_waypoint("default", "waypoint", 2)?;
        lab.apply("wild", &WILDCARD.replace("LABELS", &format!("{USE_WAYPOINT}: waypoint")))?;
        let answer = becomes("by its name", "a.wild.example.com", "HTTP 200")?;
        let is_its = waypoint.pod.ips().iter().any(|ip| answer.stdout.contains(&ip.to_string()));
        ensure!(answer.stdout.contains("\"server\":\"plain\"") && is_its, "{answer:?}");
        becomes("another of them", "b.wild.example.com", "HTTP 200")?;
        let labels = [("response_code", "200"), ("destination_service", "*.wild.example.com")];
        eventually("both are counted", CHANGE, || {
            ensure!(waypoint.metrics()?.sum("istio_requests_total", &labels) >= 2.0);
            Ok(())
        })?;
        // Known by the pattern, and nobody answers for it, or with an address of the mesh.
        becomes("no address", "none.wild.example.com", "HTTP 503")?;
        becomes("an address of the mesh", "inside.wild.example.com", "HTTP 503")?;
        // What the pattern does not mean is nothing that the registry knows.
        let address = client.lab(["resolve", "a.wild.example.com"])?.stdout;
        let address = address.split_whitespace().find(|word| word.starts_with("240.240.")).unwrap_or_default();
        becomes("another host at the same address", address, "HTTP 502")?;

        // TLS says its name itself.
        client.lab(["hello", "b.wild.example.com", "443", "b.wild.example.com", "--timeout", "1"])?;
        eventually("a connection of the waypoint", CHANGE, || {
            let log = tls.log();
            let is_its = |line: &str| waypoint.pod.ips().iter().any(|ip| line.contains(&ip.to_string()));
            ensure!(log.lines().any(|line| line.contains("no TLS from") && is_its(line)), "{log}");
            Ok(())
        })?;
        let connections = || tls.log().matches("TLS from").count();
        let seen = connections();
        client.lab(["hello", "b.wild.example.com", "443", "other.example.org", "--timeout", "1"])?;
        eventually("a name that it does not mean", CHANGE, || {
            ensure!(waypoint.metrics()?.sum("istio_tcp_connections_opened_total", &[("response_flags", "NR")]) >= 1.0);
            Ok(())
        })?;
        ensure!(connections() == seen, "{}", tls.log());
        Ok(())
    })
}
