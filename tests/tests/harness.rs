//! The harness itself, without a mesh: a lab must behave like a plain cluster, and leave nothing behind.
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    Bookinfo, Capture, Lab, LabConfig, Need, PodSpec, ServiceSpec, Stars, in_lab, plan, process::Program, until,
};
use std::time::Duration;

#[test]
fn lab_runs_bookinfo_without_a_mesh() -> Result<()> {
    in_lab(Need::Lab, || {
        let lab = Lab::start(LabConfig::default())?;
        let bookinfo = Bookinfo::deploy(&lab, "default")?;
        let capture = Capture::start(&lab.fabric, &[&bookinfo.canary])?;

        let loads = bookinfo.load(&bookinfo.client, 60)?;

        ensure!(loads.len() == 60 && loads.iter().all(|l| l.status == 200 && l.stars != Stars::Broken), "{loads:?}");
        for stars in [Stars::None, Stars::Black, Stars::Red] {
            ensure!(loads.iter().filter(|l| l.stars == stars).count() >= 5, "kube-proxy's part must spread: {stars:?}");
        }
        // The oracle must be able to see plaintext, or its silence later proves nothing.
        until("the canary on the wire", Duration::from_secs(5), || capture.seen().count(&bookinfo.canary) > 60)?;
        ensure!(capture.seen().lost == 0);
        Ok(())
    })
}

#[test]
fn lab_gives_pods_what_a_cluster_gives() -> Result<()> {
    in_lab(Need::Lab, || {
        let lab = Lab::start(LabConfig::default())?;
        let service = lab.add_service(ServiceSpec::new("server").port("http", 80, 8000).port("tcp", 9000, 9000))?;
        let service = service.context("a service with an address")?;
        lab.add_service(ServiceSpec::new("direct").selector(&[("app", "server")]).headless().port("http", 8000, 8000))?;
        let client = lab.add_pod(PodSpec::new("client"))?;
        let server = lab.add_pod(PodSpec::new("server").node(2))?;
        lab.outside_name("outside.example", &[plan::outside().v4.into()])?;
        let _http = server.serve(["http", "--port", "8000"])?;
        let _echo = server.serve(["tcp-echo", "--port", "9000"])?;
        let _outside = lab.serve_outside(&["http", "--port", "80", "--name", "outside"])?;

        // Names: search domains, headless, both families, outside, unknown.
        let resolved = client.lab(["resolve", "server"])?.success()?.stdout;
        ensure!(resolved.contains(&service.v4.to_string()) && resolved.contains(&service.v6.to_string()), "{resolved}");
        let resolved = client.lab(["resolve", "direct.default"])?.success()?.stdout;
        ensure!(resolved.contains(&server.address.v4.to_string()), "{resolved}");
        ensure!(client.lab(["resolve", "nothing.example"])?.code == 6);
        // Service address in both families, the client's own address is seen.
        for url in
            [format!("http://{}/", service.v4), format!("http://[{}]:80/", service.v6), "http://direct:8000/".into()]
        {
            let body = client.get(&url)?.success()?.stdout;
            let seen = [client.address.v4.to_string(), client.address.v6.to_string()];
            ensure!(seen.iter().any(|ip| body.contains(ip)), "{url}: {body}");
        }
        let line = client.lab(["send", "server", "9000", "port 9000"])?.success()?.stdout;
        ensure!(line == "hello port 9000\n", "{line}");
        ensure!(client.get("http://outside.example/")?.success()?.stdout.contains("\"server\":\"outside\""));
        // Refusals: a closed port of a pod; an unready pod leaves the service.
        ensure!(client.get(&format!("http://{}:81/", server.address.v4))?.code == 7);
        lab.set_ready(&server, false)?;
        ensure!(client.get(&format!("http://{}/", service.v4))?.code != 0);
        Ok(())
    })
}

#[test]
fn lab_leaves_nothing_behind() -> Result<()> {
    in_lab(Need::Lab, || {
        let lab = Lab::start(LabConfig { nodes: 1, ..LabConfig::default() })?;
        let pod = lab.add_pod(PodSpec::new("pod"))?;
        let process = pod.serve(["http", "--port", "80"])?;
        let other = Program::ours("other", "lab")?.args(["http", "--port", "81"]).cgroup(lab.cgroup().join("system"));
        let other = lab.spawn(other)?;
        let (pids, dir, cgroup) = ([process.pid(), other.pid()], lab.dir.clone(), lab.cgroup().to_path_buf());

        drop(lab);

        ensure!(!dir.exists() && !cgroup.exists(), "folder or cgroup left");
        for pid in pids {
            ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} left");
        }
        Ok(())
    })
}
