//! `lab <program>`: the helper programs that run inside the lab - servers, clients, load, cluster DNS and the janitor.
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use mesh_tests::apps::{asked, canned, client, collector, dns, ends, https, janitor, load, servers, trickle};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Wait for the end of the lab and clean up.
    Init {
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(long)]
        dir: PathBuf,
    },
    /// Run a command inside the pod of a process: its network, mounts and cgroup.
    Enter {
        pid: i32,
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Serve the cluster's names.
    Dns {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        records: PathBuf,
    },
    /// Answer every HTTP/1.1 request with the same bytes.
    Canned {
        #[arg(long, default_value_t = 8080)]
        port: u16,
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
    },
    /// Answer each line with a greeting.
    TcpEcho {
        #[arg(long = "port", default_values_t = [9000, 9001, 9002])]
        ports: Vec<u16>,
        #[arg(long, default_value = "hello")]
        prefix: String,
    },
    /// Answer HTTP with what was seen.
    Http {
        #[arg(long, default_value_t = 80)]
        port: u16,
        #[arg(long, default_value = "http")]
        name: String,
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
        /// Of each answer, whatever path is asked for.
        #[arg(long)]
        status: Option<u16>,
    },
    /// Answer HTTP in TLS with what was seen.
    Https {
        #[arg(long, default_value_t = 443)]
        port: u16,
        #[arg(long, default_value = "https")]
        name: String,
        /// Names in the certificate.
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// Becomes the certificate of the authority.
        #[arg(long)]
        roots: PathBuf,
    },
    /// Take spans as OTLP over HTTP, and tell of each.
    Collector {
        #[arg(long, default_value_t = 4318)]
        port: u16,
    },
    /// Authorize requests by a header of theirs.
    Authorizer {
        #[arg(long, default_value_t = 8000)]
        http_port: u16,
        #[arg(long, default_value_t = 9000)]
        grpc_port: u16,
    },
    /// Count requests for many.
    RateLimits {
        #[arg(long, default_value_t = 8081)]
        port: u16,
        /// KEY:COUNT or KEY=VALUE:COUNT
        #[arg(long = "limit")]
        limits: Vec<String>,
    },
    /// Speak first.
    Banner {
        #[arg(long)]
        port: u16,
        #[arg(long, default_value = "220 ready")]
        text: String,
    },
    /// Load a URL, with curl's exit codes.
    Get {
        url: String,
        #[arg(short = 'X', long = "request", default_value = "GET")]
        method: String,
        #[arg(short = 'H', long = "header")]
        headers: Vec<String>,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Tell each load in a line of JSON, also if there is but one.
        #[arg(long)]
        lines: bool,
        #[arg(long, default_value_t = 0)]
        interval_ms: u64,
        #[arg(long, default_value_t = 5.0)]
        timeout: f64,
    },
    /// Send one line and print the answer.
    Send {
        host: String,
        port: u16,
        text: String,
        /// End with a reset.
        #[arg(long)]
        reset: bool,
        #[arg(long, default_value_t = 5.0)]
        timeout: f64,
    },
    /// Connect and print the first line that the server sends.
    Listen {
        host: String,
        port: u16,
        #[arg(long, default_value_t = 5.0)]
        timeout: f64,
    },
    /// Begin TLS for a name, and print the first line that the server sends instead of going on with it.
    Hello {
        host: String,
        port: u16,
        name: String,
        #[arg(long, default_value_t = 8.0)]
        timeout: f64,
    },
    /// Connect and tell both ends.
    Probe {
        host: String,
        port: u16,
        #[arg(long, default_value_t = 0)]
        hold_ms: u64,
        #[arg(long, default_value_t = 5.0)]
        timeout: f64,
    },
    /// Keep one connection busy until standard input closes.
    Hold {
        host: String,
        port: u16,
        #[arg(long, default_value = "hold")]
        token: String,
        #[arg(long, default_value_t = 20)]
        interval_ms: u64,
        #[arg(long, default_value_t = 5.0)]
        timeout: f64,
    },
    /// Resolve a name as an app does.
    Resolve { name: String },
    /// Begin many TLS handshakes and never finish one.
    Trickle {
        target: SocketAddr,
        #[arg(long, default_value_t = 100)]
        count: usize,
        #[arg(long, default_value_t = 200)]
        interval_ms: u64,
    },
    /// Compare how both ends see connections end.
    #[command(subcommand)]
    Ends(Ends),
    /// Ask the pod's nameserver for a name many times, as fast as it goes.
    Flood {
        name: String,
        #[arg(long, default_value_t = 100_000)]
        count: u32,
    },
    /// Look at every frame of this network until standard input closes, then say in JSON what was in clear.
    Capture {
        /// What must not be seen in clear.
        #[arg(long)]
        token: Vec<String>,
        /// TCP to and from this port is counted.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Who is not in the mesh: what it sends counts apart.
        #[arg(long)]
        stranger: Vec<std::net::IpAddr>,
    },
    /// Measure; see the parts.
    #[command(subcommand)]
    Load(Load),
}

#[derive(Subcommand)]
enum Ends {
    /// The server's side.
    Serve {
        #[arg(long, default_value_t = 7000)]
        port: u16,
    },
    /// The client's side of every order of FIN and RST.
    Play {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        rounds: u32,
        /// Only the orderly ends, with so many bytes in each direction.
        #[arg(long)]
        bytes: Option<usize>,
    },
}

#[derive(Subcommand)]
enum Load {
    /// The server.
    Serve {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Round trips.
    Rtt {
        target: SocketAddr,
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// One-way bulk.
    Stream {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Seconds that a write may take.
        #[arg(long, default_value_t = 10.0)]
        patience: f64,
    },
    /// New connections.
    Conn {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        clients: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Idle connections until standard input closes.
    Idle {
        target: SocketAddr,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// The bare cost of connect().
    ConnectCost {
        target: SocketAddr,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// New connections at a rate beside long-lived ones.
    Steady {
        target: SocketAddr,
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        #[arg(long, default_value_t = 100)]
        rate: u32,
        #[arg(long, default_value_t = 0)]
        long: usize,
        #[arg(long, default_value = "steady")]
        token: String,
        #[arg(long, default_value_t = 3.0)]
        limit: f64,
    },
}

fn main() -> Result<()> {
    let seconds = Duration::from_secs_f64;
    let code = match Args::parse().program {
        Program::Init { cgroup, dir } => return janitor::run(&cgroup, &dir),
        Program::Enter { pid, command } => return enter(pid, &command),
        Program::Dns { listen, records } => return dns::run(listen, records),
        Program::TcpEcho { ports, prefix } => return servers::tcp_echo(&ports, &prefix),
        Program::Http { port, name, delay_ms, status } => {
            return servers::http(port, &name, Duration::from_millis(delay_ms), status);
        }
        Program::Https { port, name, hosts, roots } => return https::run(port, &name, &hosts, &roots),
        Program::Collector { port } => return collector::run(port),
        Program::Authorizer { http_port, grpc_port } => return asked::authorizer(http_port, grpc_port),
        Program::RateLimits { port, limits } => return asked::counting(port, &limits),
        Program::Banner { port, text } => return servers::banner(port, &text),
        Program::Get { url, method, headers, count, lines, interval_ms, timeout } => {
            let request = client::Get { url, method, headers, timeout: seconds(timeout) };
            match lines || count != 1 {
                true => client::run_gets(&request, count, Duration::from_millis(interval_ms)),
                false => client::run_get(&request),
            }
        }
        Program::Send { host, port, text, reset, timeout } => {
            client::run_send(&host, port, &text, seconds(timeout), reset)
        }
        Program::Listen { host, port, timeout } => client::run_listen(&host, port, seconds(timeout)),
        Program::Hello { host, port, name, timeout } => client::run_hello(&host, port, &name, seconds(timeout)),
        Program::Probe { host, port, hold_ms, timeout } => {
            client::run_probe(&host, port, Duration::from_millis(hold_ms), seconds(timeout))
        }
        Program::Hold { host, port, token, interval_ms, timeout } => {
            client::run_hold(&host, port, &token, Duration::from_millis(interval_ms), seconds(timeout))
        }
        Program::Resolve { name } => client::run_resolve(&name),
        Program::Trickle { target, count, interval_ms } => {
            return trickle::run(target, count, Duration::from_millis(interval_ms));
        }
        Program::Canned { port, bytes } => return canned::serve(port, bytes),
        Program::Ends(Ends::Serve { port }) => return ends::serve(port),
        Program::Ends(Ends::Play { target, rounds, bytes }) => ends::play(target, rounds, bytes)?,
        Program::Flood { name, count } => return dns::flood(&name, count),
        Program::Capture { token, port, stranger } => return capture(&token, port, &stranger),
        Program::Load(load) => return run_load(load),
    };
    std::process::exit(code)
}

fn run_load(program: Load) -> Result<()> {
    let seconds = Duration::from_secs_f64;
    match program {
        Load::Serve { port } => load::server::run(port),
        Load::Rtt { target, bytes, seconds: s } => load::measure::round_trips(target, bytes, seconds(s)),
        Load::Stream { target, connections, seconds: s, patience } => {
            load::measure::stream(target, connections, seconds(s), seconds(patience))
        }
        Load::Conn { target, clients, seconds: s } => load::measure::connections(target, clients, seconds(s)),
        Load::Idle { target, count } => load::measure::idle(target, count),
        Load::ConnectCost { target, seconds: s } => load::measure::connect_cost(target, seconds(s)),
        Load::Steady { target, seconds: s, rate, long, token, limit } => {
            load::steady::run(&load::steady::Plan {
                target,
                time: seconds(s),
                rate,
                long,
                token,
                limit: seconds(limit),
            });
            Ok(())
        }
    }
}

fn capture(tokens: &[String], port: u16, strangers: &[std::net::IpAddr]) -> Result<()> {
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let capture = mesh_tests::harness::capture::Capture::here(&tokens, port, strangers)?;
    println!("started");
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0; 1]);
    let seen = capture.seen();
    let first = seen.sightings.first().map(|one| format!("{:?}", one.flow));
    let counts = serde_json::json!({
        "packets": seen.packets, "lost": seen.lost, "tokens": seen.sightings.len(), "first": first,
        "port_bytes": seen.port_bytes, "strangers_bytes": seen.strangers_bytes, "hbone_bytes": seen.hbone_bytes,
    });
    println!("{counts}");
    Ok(())
}

/// Joins the cgroup, network and mount namespace of `pid` and becomes `command`.
fn enter(pid: i32, command: &[OsString]) -> Result<()> {
    use nix::sched::{CloneFlags, setns};
    use std::os::unix::process::CommandExt;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the process's cgroup")?;
    let path = groups.lines().find_map(|l| l.strip_prefix("0::/")).context("the process has no v2 cgroup")?;
    let procs = mesh_tests::harness::cgroup::root()?.join(path).join("cgroup.procs");
    let open = |kind: &str| {
        std::fs::File::open(format!("/proc/{pid}/ns/{kind}")).with_context(|| format!("open {kind} namespace"))
    };
    let (net, mnt) = (open("net")?, open("mnt")?);
    std::fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))?;
    setns(net, CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
    setns(mnt, CloneFlags::CLONE_NEWNS).context("enter mount namespace")?;
    let (program, args) = command.split_first().context("no command")?;
    Err(std::process::Command::new(program).args(args).exec()).with_context(|| format!("run {}", program.display()))
}
