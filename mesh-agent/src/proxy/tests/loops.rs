//! F53: whatever the configuration points at, a connection makes at most one more, and ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_core::service::{AppProtocol, ServiceAddress, ServicePort};
use mesh_core::workload::{PortMapping, TunnelProtocol};
use mesh_core::{ArcStr, Change, Service, Workload, ports};

use super::mesh::*;

fn vip_of(n: u8) -> IpAddr {
    IpAddr::from([198, 18, 101, n])
}

/// Service number `n`, on its own address.
fn numbered(n: u8) -> Service {
    let name = format!("loop-{n}");
    let mut service = Service::new(NAMESPACE, name.as_str(), format!("{name}.bookinfo.svc.cluster.local"));
    service.addresses = vec![ServiceAddress { network: ArcStr::new(), cidr: vip_of(n).into() }];
    service.ports = vec![ServicePort { service_port: PORT, target_port: PORT, app_protocol: AppProtocol::Tcp }];
    service
}

/// The only endpoint of service `n`: an address of anything, at any port.
fn endpoint(n: u8, address: IpAddr, target_port: u16, protocol: TunnelProtocol) -> Workload {
    let mut workload = workload(&format!("endpoint-{n}"), vec![address]);
    workload.uid = format!("Kubernetes/networking.istio.io/WorkloadEntry/bookinfo/endpoint-{n}").into();
    workload.protocol = protocol;
    let mapping = vec![PortMapping { service_port: PORT, target_port }];
    workload.services = Arc::new([(numbered(n).key(), mapping)].into());
    workload
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F53_no_configuration_makes_a_loop() {
    let pair = Pair::with(|config| {
        config.connect_timeout = Duration::from_millis(200);
        config.hold_unknown = Duration::from_millis(200);
    })
    .await;
    let (client, server) = (pair.client.echo(APP, ""), pair.server.echo(APP, ""));
    let own = pair.client.ip();
    let mut n = 0;
    for protocol in [TunnelProtocol::None, TunnelProtocol::Hbone] {
        for (address, port, served) in [
            // The service's own address, and in a circle through the next one's.
            (vip_of(n + 1), PORT, 0),
            (vip_of(n + 3), PORT, 0),
            (vip_of(n + 2), PORT, 0),
            // The agent's own places, in the caller and elsewhere.
            (own, ports::OUTBOUND, 0),
            (own, ports::INBOUND_PLAINTEXT, 0),
            (own, ports::HBONE, 0),
            (own, ports::DNS, 0),
            (pair.server.ip(), ports::OUTBOUND, 0),
            (pair.server.ip(), ports::HBONE, 0),
            // The caller itself: once.
            (own, APP, 1),
        ] {
            n += 1;
            pair.near.apply(vec![Change::Service(numbered(n)), Change::Workload(endpoint(n, address, port, protocol))]);
            let before = client.load(Ordering::SeqCst) + server.load(Ordering::SeqCst);
            let destination = SocketAddr::new(vip_of(n), PORT);
            match served {
                0 => pair.client.expect_refused(destination).await,
                _ => exchange(&mut pair.client.connect(destination).await, "once").await,
            }
            let after = client.load(Ordering::SeqCst) + server.load(Ordering::SeqCst);
            assert_eq!(after - before, served, "{address}:{port} {protocol:?}");
        }
    }
    eventually("nothing goes round", || pair.client.live() == 0 && pair.server.live() == 0).await;
}
