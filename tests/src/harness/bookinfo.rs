//! Bookinfo as pods and services: six workloads over the nodes, and a client.
use super::lab::Lab;
use super::pod::{Pod, PodSpec};
use super::process::Process;
use super::service::ServiceSpec;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;

/// The deployed application.
pub struct Bookinfo {
    /// All six workloads, in the order productpage, details, reviews v1-v3, ratings.
    pub pods: Vec<Arc<Pod>>,
    /// A client pod (account `sleep`) on the first node.
    pub client: Arc<Pod>,
    /// The processes of the workloads, in the order of `pods`.
    pub processes: Vec<Process>,
    /// The text that every answer and propagated header carries.
    pub canary: String,
}

const WORKLOADS: [(&str, &str, u8); 6] = [
    ("productpage", "v1", 1),
    ("details", "v1", 2),
    ("reviews", "v1", 2),
    ("reviews", "v2", 1),
    ("reviews", "v3", 2),
    ("ratings", "v1", 1),
];

impl Bookinfo {
    /// Deploys it into `namespace`. Nothing is enrolled.
    pub fn deploy(lab: &Lab, namespace: &str) -> Result<Bookinfo> {
        let canary = format!("canary-{:032x}", rand::random::<u128>());
        let last = lab.nodes.len() as u8;
        for app in ["productpage", "details", "reviews", "ratings"] {
            lab.add_service(ServiceSpec::new(app).namespace(namespace).port("http", 9080, 9080))?;
        }
        let (mut pods, mut processes) = (Vec::new(), Vec::new());
        for (app, version, node) in WORKLOADS {
            let pod = lab.add_pod(
                PodSpec::new(&format!("{app}-{version}"))
                    .namespace(namespace)
                    .label("app", app)
                    .label("version", version)
                    .service_account(&format!("bookinfo-{app}"))
                    .port("http", 9080)
                    .node(node.min(last)),
            )?;
            let args = [app, "--version", version, "--pod", &pod.name, "--canary", &canary];
            processes.push(pod.start(app, "bookinfo", args)?);
            pods.push(pod);
        }
        for process in &processes {
            process.wait_for("ready", Duration::from_secs(10))?;
        }
        let client = lab.add_pod(PodSpec::new("client").namespace(namespace).service_account("sleep"))?;
        Ok(Bookinfo { pods, client, processes, canary })
    }

    /// A workload by pod name.
    pub fn pod(&self, name: &str) -> Result<&Arc<Pod>> {
        self.pods.iter().find(|p| p.name == name).with_context(|| format!("no pod {name}"))
    }

    /// Every pod, client included.
    pub fn everyone(&self) -> Vec<&Pod> {
        self.pods.iter().chain([&self.client]).map(AsRef::as_ref).collect()
    }

    /// Loads the page `count` times from `from` and tells how each went.
    pub fn load(&self, from: &Pod, count: u32) -> Result<Vec<Load>> {
        self.start_load(from, count, Duration::ZERO)?.wait(Duration::from_secs(120)).map(|f| parse(&f.stdout))
    }

    /// Starts a load that goes on in the background.
    pub fn start_load(&self, from: &Pod, count: u32, interval: Duration) -> Result<Process> {
        self.start_load_as(from, None, count, interval)
    }

    /// `start_load` by somebody who is logged in; a single load, too, is told in a line.
    pub fn start_load_as(&self, from: &Pod, user: Option<&str>, count: u32, interval: Duration) -> Result<Process> {
        let (count, interval) = (count.to_string(), interval.as_millis().to_string());
        let headers = [format!("x-canary: {}", self.canary), format!("cookie: session={}", user.unwrap_or(""))];
        let url = "http://productpage:9080/productpage";
        let options = ["--lines", "--timeout", "20", "--count", &count, "--interval-ms", &interval];
        from.start("load", "lab", [&["get", url, "-H", &headers[0], "-H", &headers[1]], &options[..]].concat())
    }
}

/// Which reviews a page showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stars {
    /// v1: none.
    None,
    /// v2.
    Black,
    /// v3.
    Red,
    /// The page lacks something.
    Broken,
}

/// One load of the page.
#[derive(Debug, Clone)]
pub struct Load {
    /// curl's exit code.
    pub exit: i64,
    /// HTTP status.
    pub status: u64,
    /// How long it took.
    pub milliseconds: f64,
    /// What was on it.
    pub stars: Stars,
    /// The page, or the error.
    pub text: String,
}

/// Reads what `lab get --count` printed.
pub fn parse(lines: &str) -> Vec<Load> {
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|value| {
            let text = value["body"].as_str().or(value["error"].as_str()).unwrap_or("").to_string();
            let whole = text.contains("<title>Simple Bookstore App</title>")
                && text.contains("ISBN-13")
                && text.contains("Reviews served by")
                && !text.contains("currently unavailable");
            let stars = match () {
                () if !whole => Stars::Broken,
                () if text.contains("stars black") => Stars::Black,
                () if text.contains("stars red") => Stars::Red,
                () => Stars::None,
            };
            Load {
                exit: value["exit"].as_i64().unwrap_or(-1),
                status: value["status"].as_u64().unwrap_or(0),
                milliseconds: value["ms"].as_f64().unwrap_or(0.0),
                stars,
                text,
            }
        })
        .collect()
}
