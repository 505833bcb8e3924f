//! Gives each service of type LoadBalancer the addresses that it asks for, or free ones, as a cloud would; the nodes' kube-proxies serve
//! them. A part of the control plane: it runs until it is stopped.
use super::Cluster;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
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
    for line in lines {
        let line = line.context("read from kubectl")?;
        let Some(wish) = Wish::read(&line) else { continue };
        let ingress: Vec<Value> = wish.addresses(cluster, given)?.iter().map(|ip| json!({ "ip": ip })).collect();
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

/// A service that has no address yet.
#[derive(Debug, PartialEq)]
struct Wish<'a> {
    namespace: &'a str,
    name: &'a str,
    asked: Option<&'a str>,
    families: Vec<&'a str>,
}

impl<'a> Wish<'a> {
    fn read(line: &'a str) -> Option<Wish<'a>> {
        let mut words = line.split(' ');
        let (namespace, name, asked) = (words.next()?, words.next()?, words.next()?);
        let families = words.next()?.split(',').filter(|family| !family.is_empty()).collect();
        let has_none = words.next()?.is_empty();
        has_none.then_some(Wish { namespace, name, asked: (asked != "-").then_some(asked), families })
    }

    fn addresses(&self, cluster: &Cluster, given: &mut BTreeSet<String>) -> Result<Vec<String>> {
        if let Some(asked) = self.asked {
            given.insert(asked.to_owned());
            return Ok(vec![asked.to_owned()]);
        }
        for n in 2..=250 {
            let dual = cluster.plan.balancer(n);
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
    fn only_services_without_an_address_get_one() {
        let wish = Wish::read("ns web - IPv4,IPv6, ").expect("a wish");
        assert_eq!(wish, Wish { namespace: "ns", name: "web", asked: None, families: vec!["IPv4", "IPv6"] });
        assert_eq!(Wish::read("ns web 198.18.1.9 IPv4, ").and_then(|wish| wish.asked), Some("198.18.1.9"));
        assert_eq!(Wish::read("ns web - IPv4, 198.18.1.2,"), None);
        assert_eq!(Wish::read(""), None);
    }
}
