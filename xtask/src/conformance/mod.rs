//! `cargo xtask conformance`: the Gateway API's conformance suite, as its authors publish it, against the mesh that is installed in a cluster of
//! `cargo xtask cluster`. The suite's report is kept under `conformance/`; what it prints is counted as well, for tests that are in no profile are in no report.
mod chosen;
mod fresh;
mod suite;
mod tally;

use crate::run;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Where the waypoint of the suite's namespaces is.
const NAMESPACE: &str = "conformance-waypoints";
const WAYPOINT: &str = "waypoint";
/// What the suite writes after its last test.
const REPORT: &str = "report.yaml";

/// Options.
#[derive(clap::Args)]
pub struct Args {
    /// Which profiles; all of them if none is named
    #[arg(value_name = "PROFILE", value_parser = chosen::PROFILES)]
    profiles: Vec<String>,
    /// Which cluster of this machine; the mesh must be installed there
    #[arg(long, env = "UNDERMESH_CLUSTER", default_value_t = 0)]
    cluster: u8,
    /// Only this test, or `A|B|C`; no report is kept
    #[arg(long, value_name = "NAME", conflicts_with = "short")]
    test: Option<String>,
    /// Only a list of tests that has some of each profile; no report is kept
    #[arg(long, conflicts_with = "profiles")]
    short: bool,
    /// Start the cluster and install the mesh of this tree (debug binaries) before, and take it down afterwards
    #[arg(long)]
    fresh: bool,
    /// Build the suite and what it runs, and nothing more
    #[arg(long)]
    build: bool,
}

impl Args {
    fn profiles(&self) -> Vec<String> {
        if self.profiles.is_empty() { chosen::PROFILES.map(str::to_owned).into() } else { self.profiles.clone() }
    }

    /// The tests that are named, as one expression.
    fn tests(&self) -> Option<String> {
        self.test.clone().or_else(|| self.short.then(|| chosen::SHORT.join("|")))
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    run::need(&["go", "openssl", "nsenter"])?;
    if args.fresh {
        // Before the suite is built: that takes minutes, and what stands is not ours to take down.
        crate::cluster::must_be_free(args.cluster)?;
    }
    let suite = suite::build()?;
    if args.build {
        println!("{}", suite.display());
        return Ok(());
    }
    run::need_root("conformance")?;
    let _cluster = if args.fresh { Some(fresh::Fresh::up(args.cluster)?) } else { None };
    for archive in suite::images(&suite)? {
        cluster(args, &["load", &archive.to_string_lossy()])?;
    }
    let definitions = suite.join("crd/experimental");
    cluster(args, &["kubectl", "apply", "--server-side", "-k", &definitions.to_string_lossy()])?;
    waypoint(args, &suite)?;
    let (tally, ended) = suite_run(args, &suite)?;
    let report = suite.join(REPORT);
    if report.exists() {
        print!("{}", fs::read_to_string(&report).context("read the report")?);
        keep(args, &report)?;
    }
    println!("{tally}");
    // It may fail outside of its tests, before the first or after the last.
    ensure!(
        ended.success() && tally.failed.is_empty() && !tally.passed.is_empty(),
        "not conformant: see above ({ended})"
    );
    Ok(())
}

/// Runs a verb of `cargo xtask cluster`.
fn cluster(args: &Args, words: &[&str]) -> Result<()> {
    let own = std::env::current_exe().context("find own binary")?;
    let index = args.cluster.to_string();
    run::check(Command::new(own).args(["cluster", "--cluster", &index]).args(words).stdin(Stdio::null()))
}

/// One waypoint for all namespaces of the suite, which it makes and deletes.
fn waypoint(args: &Args, suite: &Path) -> Result<()> {
    let manifest = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {WAYPOINT}, namespace: {NAMESPACE}}}\nspec:\n  gatewayClassName: undermesh-waypoint\n  listeners:\n  \
         - {{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: All}}}}}}\n"
    );
    let file = suite.join("waypoint.yaml");
    fs::write(&file, manifest).with_context(|| format!("write {}", file.display()))?;
    cluster(args, &["kubectl", "apply", "-f", &file.to_string_lossy()])?;
    let gateway = format!("gateway/{WAYPOINT}");
    cluster(args, &["kubectl", "wait", "-n", NAMESPACE, &gateway, "--for=condition=Programmed", "--timeout=240s"])
}

/// Runs the suite in the network of the first node, shows what it prints, and counts it.
fn suite_run(args: &Args, suite: &Path) -> Result<(tally::Tally, ExitStatus)> {
    let kubeconfig = run::binary_dir("")?.join(format!("cluster{}/admin.kubeconfig", args.cluster));
    let report = suite.join(REPORT);
    if report.exists() {
        fs::remove_file(&report).context("remove the former report")?;
    }
    let labels = format!(
        "istio.io/dataplane-mode=ambient,istio.io/use-waypoint={WAYPOINT},istio.io/use-waypoint-namespace={NAMESPACE}"
    );
    let profiles = args.profiles();
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/um{}-n1", args.cluster))
        .arg(suite.join("conformance.test"))
        .args(["-test.v", "-test.timeout=3h", "-all-features", "-gateway-class=undermesh"])
        .arg(format!("-conformance-profiles={}", profiles.join(",")))
        .arg(format!("-namespace-labels={labels}"))
        .args(["-organization=undermesh", "-project=undermesh", "-url=https://undermesh.io", "-contact=none"])
        .arg(format!("-version={}", env!("CARGO_PKG_VERSION")))
        .env("KUBECONFIG", kubeconfig)
        .stdout(Stdio::piped());
    let exempt = chosen::exempt(&profiles);
    if !exempt.is_empty() {
        command.arg(format!("-exempt-features={}", exempt.join(",")));
    }
    if profiles.iter().any(|profile| profile.starts_with("GATEWAY-")) {
        // One that services may ask for, and one of those that are for documentation.
        let usable = crate::cluster::service_address(args.cluster);
        command.arg(format!("-usable-address={usable}")).arg("-unusable-address=203.0.113.7");
    }
    match args.tests() {
        Some(tests) => command.arg(format!("-test.run=TestConformance/^({tests})$")),
        // Of single tests there is nothing to keep.
        None => command.arg(format!("-report-output={}", report.display())),
    };
    let mut child = command.spawn().context("start the suite")?;
    let mut log = File::create(suite.join("last.log")).context("open the log")?;
    let mut tally = tally::Tally::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line.context("read what the suite prints")?;
        writeln!(log, "{line}").context("write the log")?;
        if tally.take(&line) {
            println!("{line}");
        }
    }
    let ended = child.wait().context("wait for the suite")?;
    println!("all of it: {}", suite.join("last.log").display());
    Ok((tally, ended))
}

/// Puts the report to the sources.
fn keep(args: &Args, report: &Path) -> Result<()> {
    let folder = run::root()?.join("conformance");
    fs::create_dir_all(&folder).context("make the folder of reports")?;
    let kept = folder.join(format!("{}.yaml", chosen::report(&args.profiles())));
    fs::copy(report, &kept).with_context(|| format!("write {}", kept.display())).map(drop)
}
