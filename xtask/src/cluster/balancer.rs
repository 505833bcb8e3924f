//! Gives each service of type LoadBalancer the address that it asks for if that is one of ours, or free ones, as a cloud would; the nodes'
//! kube-proxies serve them. A part of the control plane: it runs until it is stopped.
use super::Cluster;
use super::plan::Dual;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// One line for each service that changed.
const TEMPLATE: &str = r#"{{if eq .spec.type "LoadBalancer"}}{{.metadata.namespace}} {{.metadata.name}} {{or .spec.loadBalancerIP "-"}} {{range .spec.ipFamilies}}{{.}},{{end}} {{range .status.loadBalancer.ingress}}{{.ip}},{{end}}{{"\n"}}{{end}}"#;

/// Serves for ever.
pub fn run(cluster: &Cluster) -> Result<()> {
    loop {
        if let Err(error) = watch(cluster) {
            eprintln!("watch: {error:#}");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn watch(cluster: &Cluster) -> Result<()> {
    let template = format!("-o=go-template={TEMPLATE}");
    let mut given = BTreeSet::new();
    // What is given away already must be known before anything is given.
    for line in cluster.kubectl(&["get", "services", "-A", "-o=json"]).and_then(|text| ingress(&text))? {
        given.insert(line);
    }
    let mut command = Command::new(cluster.programs.join("kubectl"));
    command.arg("--kubeconfig").arg(cluster.kubeconfig("admin"));
    command.args(["get", "services", "-A", "--watch", &template]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start kubectl")?;
    let lines = child.stdout.take().map(|output| BufReader::new(output).lines());
    let served = serve(cluster, lines.context("no output")?, &mut given);
    // Whatever ended the service: the next watch starts a kubectl of its own.
    let _ = child.kill();
    child.wait().context("wait for kubectl")?;
    served
}

fn serve(
    cluster: &Cluster,
    lines: impl Iterator<Item = std::io::Result<String>>,
    given: &mut BTreeSet<String>,
) -> Result<()> {
    // A service may change once more before it is heard that it has an address: then it keeps that one.
    let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let line = line.context("read from kubectl")?;
        let Some(wish) = Wish::read(&line) else { continue };
        let addresses = wish.kept(&mut kept, |n| cluster.plan.balancer(n), given)?;
        if wish.has == addresses {
            continue;
        }
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
        let line = ["patch", "service", wish.name, "--namespace", wish.namespace, "--subresource=status"];
        match cluster.kubectl(&[&line[..], &["--type=merge", "--patch", &patch]].concat()) {
            // kubectl prints what has been deleted, too.
            Err(error) if format!("{error:#}").contains("(NotFound)") => {}
            patched => drop(patched?),
        }
    }
    Ok(())
}

fn ingress(text: &str) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(text).context("read the services")?;
    let services = list["items"].as_array().into_iter().flatten();
    let entries =
        services.flat_map(|service| service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten());
    Ok(entries.filter_map(|entry| entry["ip"].as_str().map(str::to_owned)).collect())
}

/// A service that has no address yet, or that asks for one.
#[derive(Debug, PartialEq)]
struct Wish<'a> {
    namespace: &'a str,
    name: &'a str,
    asked: Option<&'a str>,
    families: Vec<&'a str>,
    has: Vec<&'a str>,
}

impl<'a> Wish<'a> {
    fn read(line: &'a str) -> Option<Wish<'a>> {
        let mut words = line.split(' ');
        let (namespace, name, asked) = (words.next()?, words.next()?, words.next()?);
        let list = |word: &'a str| word.split(',').filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let (families, has) = (list(words.next()?), list(words.next()?));
        let asked = (asked != "-").then_some(asked);
        (has.is_empty() || asked.is_some()).then_some(Wish { namespace, name, asked, families, has })
    }

    /// What it gets, which is what it was given before unless it asks for an address.
    fn kept(
        &self,
        kept: &mut BTreeMap<String, Vec<String>>,
        ours: impl Fn(u8) -> Dual,
        given: &mut BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let name = format!("{}/{}", self.namespace, self.name);
        if let (None, Some(addresses)) = (self.asked, kept.get(&name)) {
            return Ok(addresses.clone());
        }
        let addresses = self.addresses(ours, given)?;
        if self.asked.is_none() {
            kept.insert(name, addresses.clone());
        }
        Ok(addresses)
    }

    /// What it gets; nothing if it asks for what is not ours to give.
    fn addresses(&self, ours: impl Fn(u8) -> Dual, given: &mut BTreeSet<String>) -> Result<Vec<String>> {
        const OURS: std::ops::RangeInclusive<u8> = 2..=250;
        if let Some(asked) = self.asked {
            if !OURS.map(&ours).any(|dual| dual.v4 == asked || dual.v6 == asked) {
                return Ok(Vec::new());
            }
            given.insert(asked.to_owned());
            return Ok(vec![asked.to_owned()]);
        }
        for dual in OURS.map(ours) {
            if !given.contains(&dual.v4) && !given.contains(&dual.v6) {
                let of = |family: &&str| if *family == "IPv6" { dual.v6.clone() } else { dual.v4.clone() };
                let addresses: Vec<String> = self.families.iter().map(of).collect();
                given.extend(addresses.iter().cloned());
                return Ok(addresses);
            }
        }
        bail!("every address is given away")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_without_an_address_or_with_a_wish_get_one() {
        let wish = Wish::read("ns web - IPv4,IPv6, ").expect("a wish");
        let families = vec!["IPv4", "IPv6"];
        assert_eq!(wish, Wish { namespace: "ns", name: "web", asked: None, families, has: Vec::new() });
        assert_eq!(Wish::read("ns web 198.18.1.9 IPv4, ").and_then(|wish| wish.asked), Some("198.18.1.9"));
        assert_eq!(Wish::read("ns web - IPv4, 198.18.1.2,"), None);
        assert_eq!(Wish::read(""), None);
    }

    #[test]
    fn a_service_that_changes_before_its_address_is_heard_of_keeps_it() {
        let ours = |n: u8| Dual { v4: format!("198.18.1.{n}"), v6: format!("fd00:198::{n}") };
        let (mut kept, mut given) = (BTreeMap::new(), BTreeSet::new());
        let mut give = |line| Wish::read(line).expect(line).kept(&mut kept, ours, &mut given).expect(line);
        assert_eq!(give("ns web - IPv4, "), ["198.18.1.2"]);
        assert_eq!(give("ns web - IPv4, "), ["198.18.1.2"]);
        assert_eq!(give("ns other - IPv4, "), ["198.18.1.3"]);
        assert_eq!(give("ns web 198.18.1.200 IPv4, 198.18.1.2,"), ["198.18.1.200"]);
    }

    #[test]
    fn a_service_gets_what_it_asks_for_if_that_is_ours() {
        let ours = |n: u8| Dual { v4: format!("198.18.1.{n}"), v6: format!("fd00:198::{n}") };
        for (line, expected) in [
            ("ns web - IPv4,IPv6, ", &["198.18.1.3", "fd00:198::3"][..]),
            ("ns web 198.18.1.200 IPv4,IPv6, ", &["198.18.1.200"]),
            ("ns web fd00:198::9 IPv4,IPv6, ", &["fd00:198::9"]),
            ("ns web 203.0.113.7 IPv4, ", &[]),
            // It has asked for another one before.
            ("ns web 198.18.1.200 IPv4, 198.18.1.4,", &["198.18.1.200"]),
            ("ns web 203.0.113.7 IPv4, 198.18.1.4,", &[]),
        ] {
            let mut given = BTreeSet::from(["198.18.1.2".to_owned()]);
            let wish = Wish::read(line).expect(line);
            assert_eq!(wish.addresses(ours, &mut given).expect(line), expected, "{line}");
        }
    }
}
