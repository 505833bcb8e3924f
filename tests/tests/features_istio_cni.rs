//! Under Istio's node agent: it names the pods and redirects them by iptables, for a proxy that it takes for ztunnel. Its rules are in force here beside
//! our hooks, and both must mean the same.

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::istio_cni::HOST_PROBE;
use mesh_tests::harness::policy::peer_authentication;
use mesh_tests::harness::{
    IstioCni, Lab, LabConfig, Need, Pod, PodSpec, Process, ServiceSpec, eventually, in_lab, netlink, plan,
};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 9000;

/// A client on node 1, a server on node 2, both redirected and enrolled; and a pod of nobody's on node 1.
struct Redirected {
    lab: Lab,
    cni: Vec<IstioCni>,
    client: Arc<Pod>,
    server: Arc<Pod>,
    stranger: Arc<Pod>,
    _server: Process,
}

impl Redirected {
    fn start() -> Result<Redirected> {
        let lab = Lab::start(LabConfig { istio_cni: true, ..LabConfig::default() })?;
        let cni = lab.nodes.iter().map(|node| IstioCni::start(&node.zds())).collect::<Result<Vec<_>>>()?;
        lab.start_mesh()?;
        lab.add_service(ServiceSpec::new("tcp-echo").port("a", PORT, PORT))?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        let server = lab.add_pod(PodSpec::new("tcp-echo").service_account("echo").node(2))?;
        let stranger = lab.add_pod(PodSpec::new("stranger"))?;
        let _server = server.serve(["tcp-echo"])?;
        let lab = Redirected { lab, cni, client, server, stranger, _server };
        lab.enrol(&lab.client)?;
        lab.enrol(&lab.server)?;
        lab.lab.wait_hbone(&[&lab.client, &lab.server])?;
        Ok(lab)
    }

    fn enrol(&self, pod: &Pod) -> Result<()> {
        self.cni[usize::from(pod.node.number) - 1].add(pod)?;
        self.lab.announce(pod)
    }

    /// How one exchange with the server from `pod` ends.
    fn send(&self, pod: &Pod, host: &str, port: u16) -> Result<i32> {
        Ok(pod.lab(["send", host, &port.to_string(), "x", "--timeout", "5"])?.code)
    }

    fn becomes(&self, pod: &Pod, host: &str, port: u16, open: bool) -> Result<()> {
        eventually(&format!("{} to {host}:{port}, open: {open}", pod.name), SOON, || {
            let code = self.send(pod, host, port)?;
            ensure!((code == 0) == open, "code {code}");
            Ok(())
        })
    }

    /// Access-log lines of the server's agent about what `pod` sent.
    fn seen(&self, pod: &Pod, words: &[&str]) -> Result<usize> {
        let address = pod.address.v4.to_string();
        let words: Vec<&str> = words.iter().copied().chain([address.as_str()]).collect();
        Ok(self.server.node.agent()?.access_log(&words).len())
    }
}

fn in_redirected_lab(test: impl FnOnce(Redirected) -> Result<()>) -> Result<()> {
    if let Some(missing) = IstioCni::missing() {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED: {name}: {missing}\n").as_bytes());
        return Ok(());
    }
    in_lab(Need::Mesh, || test(Redirected::start()?))
}

#[test]
fn features_under_istios_rules_pods_speak_mutual_tls_and_policies_see_the_real_ports() -> Result<()> {
    in_redirected_lab(|mesh| {
        let Redirected { lab, client, server, stranger, .. } = &mesh;
        let (v4, v6) = (server.address.v4.to_string(), server.address.v6.to_string());
        for host in ["tcp-echo", &v4, &v6] {
            mesh.becomes(client, host, PORT, true)?;
        }
        let from = client.identity();
        eventually("the identity of the client", SOON, || {
            ensure!(mesh.seen(client, &[&from, &server.identity()])? > 0, "no line of it");
            Ok(())
        })?;
        // The app sees who it is, and plaintext comes through the rules to the agent, which knows what port it was for.
        mesh.becomes(stranger, &v4, PORT, true)?;
        mesh.becomes(stranger, &v6, PORT, true)?;
        let seen = mesh._server.stdout();
        for ip in [client.address.v4.to_string(), stranger.address.v4.to_string(), stranger.address.v6.to_string()] {
            ensure!(seen.contains(&ip), "the server has not seen {ip}: {seen}");
        }
        // The agent's own ports are nobody's.
        for port in [15001, 15006, 15053] {
            ensure!(mesh.send(stranger, &v4, port)? != 0, "port {port} answers");
        }
        // STRICT but for a port: the kernel sees another one than the policy names.
        lab.apply("strict", &peer_authentication("default", "STRICT", Some("tcp-echo"), &[(9001, "PERMISSIVE")]))?;
        mesh.becomes(stranger, &v4, PORT, false)?;
        mesh.becomes(stranger, &v4, 9001, true)?;
        mesh.becomes(stranger, &v6, 9001, true)?;
        mesh.becomes(client, "tcp-echo", PORT, true)?;
        lab.apply("strict", &peer_authentication("default", "PERMISSIVE", Some("tcp-echo"), &[(9002, "STRICT")]))?;
        mesh.becomes(stranger, &v4, 9002, false)?;
        mesh.becomes(stranger, &v4, PORT, true)?;
        lab.apply("strict", &peer_authentication("default", "STRICT", Some("tcp-echo"), &[]))?;
        mesh.becomes(stranger, &v4, PORT, false)?;
        // The host's own processes still ask whether the app is well.
        let host = &server.node.netns;
        host.run(|| netlink::add_address("lo", HOST_PROBE.parse::<IpAddr>()?, 32))?;
        let answer = host.run(|| probe(HOST_PROBE.parse()?, SocketAddr::new(server.address.v4.into(), PORT)))?;
        ensure!(answer.contains("well"), "{answer}");
        Ok(())
    })
}

#[test]
fn features_under_istios_rules_what_no_hook_sees_is_carried_all_the_same() -> Result<()> {
    in_redirected_lab(|mesh| {
        let Redirected { lab, client, server, .. } = &mesh;
        let v4 = server.address.v4.to_string();
        lab.apply("strict", &peer_authentication("default", "STRICT", Some("tcp-echo"), &[]))?;
        mesh.becomes(client, &v4, PORT, true)?;
        // A process that is in the pod's network and in no cgroup of the pod: its connects meet the rules alone.
        let from_outside = |args: &[&str]| {
            let program =
                client.program("outside", "lab")?.cgroup(client.node.cgroup.join("system")).args(args.to_vec());
            client.spawn(program)?.wait(Duration::from_secs(30))
        };
        let before = mesh.seen(client, &[&client.identity()])?;
        let sent = from_outside(&["send", &v4, &PORT.to_string(), "x"])?;
        ensure!(sent.code == 0, "{sent:?}");
        eventually("its connection to be the pod's", SOON, || {
            ensure!(mesh.seen(client, &[&client.identity()])? > before, "no further line");
            Ok(())
        })?;
        let named = from_outside(&["send", "tcp-echo", &PORT.to_string(), "x"])?;
        ensure!(named.code == 0, "names asked past the hooks: {named:?}");
        ensure!(from_outside(&["send", "127.0.0.1", "15001", "x"])?.code != 0, "nothing was redirected to be carried");
        // The outside is outside.
        let _outside = lab.serve_outside(&["http", "--port", "8081", "--name", "outside"])?;
        let body = client.get(&format!("http://{}:8081/", plan::outside().v4))?.success()?.stdout;
        ensure!(body.contains(&client.address.v4.to_string()), "{body}");
        // A worker that is killed takes nobody's place away.
        server.node.agent()?.signal_worker(Signal::SIGKILL)?;
        client.node.agent()?.signal_worker(Signal::SIGKILL)?;
        mesh.becomes(client, &v4, PORT, true)?;
        // Out of the mesh: with its rules left behind nothing is carried in the pod's name any more.
        mesh.cni[0].del(client)?;
        ensure!(mesh.send(client, &v4, PORT)? != 0, "served after the end");
        Ok(())
    })
}

/// Asks `to` from an address of the host.
fn probe(from: IpAddr, to: SocketAddr) -> Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).context("connect")?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"well\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
