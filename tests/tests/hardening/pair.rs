//! What most of these tests stand on: a client, a server on another node, and load between them.
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Lab, LabConfig, Pod, PodSpec, Process};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Long enough for whatever should happen at once, on a slow machine too.
pub const SOON: Duration = Duration::from_secs(10);
/// What all load carries and nobody may see on the wire.
pub const TOKEN: &str = "canary-of-the-hardening-tests";

/// A client on node 1, a load server on node 2 (port 8080), enrolled; and the address to call.
pub struct Pair {
    pub lab: Lab,
    pub client: Arc<Pod>,
    pub server: Arc<Pod>,
    pub target: String,
    _server: Process,
}

impl Pair {
    pub fn start(config: LabConfig) -> Result<Pair> {
        let lab = Lab::with_mesh(config)?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        let server = lab.add_pod(PodSpec::new("server").service_account("server").node(2))?;
        let _server = server.serve(["load", "serve"])?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client, &server])?;
        let target = format!("{}:8080", server.address.v4);
        Ok(Pair { lab, client, server, target, _server })
    }

    /// The server's IPv4 address, as an argument.
    pub fn address(&self) -> String {
        self.server.address.v4.to_string()
    }

    /// Starts new connections at a rate beside long-lived ones, until `ended` asks for the result.
    pub fn steady(&self, rate: u32, long: u32) -> Result<Steady> {
        self.load(rate, long, "5")
    }

    /// The same with connections that may take long to begin.
    pub fn patient(&self, rate: u32, long: u32) -> Result<Steady> {
        self.load(rate, long, "20")
    }

    fn load(&self, rate: u32, long: u32, limit: &str) -> Result<Steady> {
        let (rate, long) = (rate.to_string(), long.to_string());
        let day = (24 * 3600).to_string();
        let args = ["load", "steady", &self.target, "--rate", &rate, "--long", &long, "--seconds", &day];
        let load = self.client.start("steady", "lab", args.into_iter().chain(["--token", TOKEN, "--limit", limit]))?;
        load.wait_for("started", SOON)?;
        Ok(Steady(load))
    }

    /// Starts one long connection from the client.
    pub fn hold(&self) -> Result<Process> {
        let hold =
            self.client.start("hold", "lab", ["hold", &self.address(), "8080", "--token", TOKEN, "--timeout", "60"])?;
        hold.wait_for("open", SOON)?;
        Ok(hold)
    }

    /// The exit code of one exchange from `pod`.
    pub fn send_from(&self, pod: &Pod, limit: &str) -> Result<i32> {
        Ok(pod.lab(["send", &self.address(), "8080", "Chello", "--timeout", limit])?.code)
    }

    /// The exit code of one exchange from the client.
    pub fn send(&self) -> Result<i32> {
        self.send_from(&self.client, "5")
    }

    /// One exchange from the client succeeds.
    pub fn serves(&self) -> Result<()> {
        let code = self.send()?;
        ensure!(code == 0, "an exchange ended with code {code}");
        Ok(())
    }
}

/// Load that is going on.
pub struct Steady(Process);

impl Steady {
    /// Ends it and tells how every attempt went.
    pub fn ended(&self) -> Result<Outcome> {
        self.0.close_stdin();
        let output = self.0.wait(Duration::from_secs(60))?.stdout;
        let last = output.lines().last().unwrap_or("");
        Ok(Outcome(serde_json::from_str(last).with_context(|| format!("result of the load: {output}"))?))
    }
}

/// How the attempts of a load went.
pub struct Outcome(pub Value);

impl Outcome {
    /// A number of the result.
    pub fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(u64::MAX)
    }

    /// Something was carried, and not one connection failed or was cut.
    pub fn flawless(&self) -> Result<()> {
        for key in ["refused", "reset", "timeout", "other", "cut"] {
            ensure!(self.count(key) == 0, "{key}: {}", self.0);
        }
        ensure!(self.count("ok") > 0, "nothing was carried: {}", self.0);
        Ok(())
    }
}

/// Lets the load, which is the clock here, go on for a while.
pub fn let_run(time: Duration) {
    std::thread::sleep(time);
}
