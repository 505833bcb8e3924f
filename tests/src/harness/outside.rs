//! A machine on the fabric that is in no pod or service range: the world outside the cluster.
use super::netlink::{self, Via};
use super::netns::Netns;
use super::plan;
use anyhow::Result;
use std::net::IpAddr;

/// Makes the machine and its routes to `nodes` nodes and their pods.
pub(super) fn create(nodes: u8, fabric: &Netns) -> Result<Netns> {
    let netns = Netns::create("outside")?;
    fabric.run(|| {
        netlink::add_veth("outside", "eth0", netns.fd())?;
        netlink::set_master("outside", "br0")?;
        netlink::set_up("outside", true)
    })?;
    netns.run(|| {
        netlink::set_up("eth0", true)?;
        for ip in plan::outside().both() {
            let prefix = if ip.is_ipv4() { 24 } else { 64 };
            netlink::add_address("eth0", ip, prefix)?;
            for number in 1..=nodes {
                let (own, range) = (plan::node(number), plan::gateway(number));
                let (own, range): (IpAddr, IpAddr) =
                    if ip.is_ipv4() { (own.v4.into(), range.v4.into()) } else { (own.v6.into(), range.v6.into()) };
                netlink::add_route(own, if ip.is_ipv4() { 32 } else { 128 }, Via::Device("eth0"))?;
                netlink::add_route(plan::network(range), prefix, Via::Gateway(own, "eth0"))?;
            }
        }
        Ok(())
    })?;
    Ok(netns)
}
