//! `bookinfo <service> --version v1`: one Bookinfo service. Started by the lab inside a pod.
use clap::Parser;
use mesh_tests::apps::bookinfo::{self, Kind, Service};

#[derive(Parser)]
struct Args {
    /// Which service to be.
    kind: Kind,
    /// The version label.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Name of the pod, shown in answers.
    #[arg(long, default_value = "")]
    pod: String,
    /// A text to carry in every answer.
    #[arg(long, default_value = "")]
    canary: String,
    /// Port to listen on.
    #[arg(long, default_value_t = 9080)]
    port: u16,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pod = if args.pod.is_empty() { format!("{:?}-{}", args.kind, args.version).to_lowercase() } else { args.pod };
    bookinfo::run(Service { kind: args.kind, version: args.version, pod, canary: args.canary }, args.port)
}
