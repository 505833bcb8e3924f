//! Messages that the tests are made of.

mod refusals;
mod round_trip;

use std::net::IpAddr;

use mesh_core::{
    Connection, GatewayAddress, NamespacedName, Store, authorize,
    policy::{Action, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
    service::{
        AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope as Locality, ServiceAddress, ServicePort,
        Visibility,
    },
    workload::{
        ApplicationTunnel, GatewayDestination, Health, NetworkAddress, NetworkMode, PortMapping, TunnelProtocol,
        WorkloadType,
    },
};
use proptest::{collection::vec, option, prelude::*};

use super::*;

fn workload() -> wds::Workload {
    wds::Workload {
        uid: "Kubernetes//Pod/shop/cart-1".into(),
        name: "cart-1".into(),
        namespace: "shop".into(),
        addresses: vec![vec![198, 18, 0, 1]],
        ..Default::default()
    }
}

fn service() -> wds::Service {
    wds::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        addresses: vec![wds::NetworkAddress { address: vec![198, 19, 0, 1], ..Default::default() }],
        ports: vec![wds::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Default::default()
    }
}

fn read_workload(change: impl FnOnce(&mut wds::Workload)) -> Result<AddressResource, ConvertError> {
    let mut message = workload();
    change(&mut message);
    address(&wds::Address { r#type: Some(wds::address::Type::Workload(message)) }.encode_to_vec())
}

fn read_service(change: impl FnOnce(&mut wds::Service)) -> Result<AddressResource, ConvertError> {
    let mut message = service();
    change(&mut message);
    address(&wds::Address { r#type: Some(wds::address::Type::Service(message)) }.encode_to_vec())
}

fn authorization(one: auth::Match) -> auth::Authorization {
    auth::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: auth::Scope::Namespace as i32,
        rules: vec![auth::Rule { clauses: vec![auth::Clause { matches: vec![one] }] }],
        ..Default::default()
    }
}

fn read_match(change: impl FnOnce(&mut auth::Match)) -> Result<Policy, PolicyError> {
    let mut one = auth::Match::default();
    change(&mut one);
    policy(&authorization(one).encode_to_vec())
}

fn port_list(service_port: u32, target_port: u32) -> wds::PortList {
    wds::PortList { ports: vec![wds::Port { service_port, target_port, app_protocol: 0 }] }
}

const CART: &str = "shop/cart.shop.svc.cluster.local";

fn connection() -> Connection<'static> {
    let ip = IpAddr::from([198, 18, 0, 9]);
    let destination_ip = IpAddr::from([198, 18, 0, 1]);
    Connection { source_ip: ip, source: None, via: None, destination_ip, destination_port: 80 }
}
