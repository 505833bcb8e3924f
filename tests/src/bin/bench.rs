//! `bench`: what `cargo xtask bench` runs.
use clap::Parser;
use mesh_tests::bench::{self, Line, Options, Peer, RequestOptions};
use mesh_tests::harness::spawner;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;

#[derive(Parser)]
struct Args {
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Idle connections to hold.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Only these measurements.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Line>,
    /// Leave direct TCP out.
    #[arg(long)]
    skip_direct: bool,
    /// Also a ztunnel and our agent as peers of each other.
    #[arg(long, requires = "ztunnel")]
    interop: bool,
    /// A ztunnel binary to measure beside.
    #[arg(long, requires = "redirect")]
    ztunnel: Option<PathBuf>,
    /// The script that sets up its redirection in a pod.
    #[arg(long)]
    redirect: Option<PathBuf>,
    /// Instead of all that: requests through our gateway, and through this Envoy.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// The same, and through this HAProxy.
    #[arg(long)]
    haproxy: Option<PathBuf>,
    /// With --envoy or --haproxy: client, proxies and back end in one pod, over its loopback device.
    #[arg(long)]
    one_pod: bool,
    /// Instead of all that: full load of requests on our gateway for so many seconds.
    #[arg(long)]
    soak: Option<u32>,
    /// Instead of all that: load for a profile of mesh-waypoint.
    #[arg(long)]
    train: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        spawner::clean_all();
        std::process::exit(130);
    });
    if args.train {
        return bench::train(args.seconds);
    }
    let absolute = |path: PathBuf| path.canonicalize().unwrap_or(path);
    let ztunnel = args.ztunnel.zip(args.redirect).map(|(b, r)| Peer { binary: absolute(b), redirect: absolute(r) });
    if args.envoy.is_some() || args.haproxy.is_some() || args.soak.is_some() {
        let (envoy, haproxy) = (args.envoy.map(absolute), args.haproxy.map(absolute));
        return bench::run_requests(&RequestOptions {
            seconds: args.seconds,
            envoy,
            haproxy,
            one_pod: args.one_pod,
            soak: args.soak,
        });
    }
    let Args { seconds, idle, only, skip_direct, interop, .. } = args;
    bench::run(&Options { seconds, ztunnel, idle, only, skip_direct, interop })
}
