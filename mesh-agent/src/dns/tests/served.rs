//! What clients get for names of the mesh, over UDP and TCP.

use std::net::{IpAddr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType as Kind};
use mesh_core::ports;

use super::harness::{FakePod, addresses, exchange, framed, ip, name, query, serve, soon, with_edns};

const HOST: &str = "reviews.bookinfo.svc.cluster.local";

#[tokio::test]
async fn a_mesh_name_is_answered_over_udp_and_tcp() {
    let v6: IpAddr = Ipv6Addr::new(0xfd00, 0x198, 0, 0, 0, 0, 0, 1).into();
    let served = serve(FakePod::new(None).with(HOST, &[ip(1), v6]));
    for reply in [
        served.ask(&query("reviews.bookinfo.svc.cluster.local.", Kind::A)).await,
        served.ask_tcp(&query("reviews.bookinfo.svc.cluster.local.", Kind::A)).await,
    ] {
        assert_eq!((reply.response_code, reply.id, reply.truncation), (ResponseCode::NoError, 0x4242, false));
        assert!(reply.authoritative && reply.recursion_available && reply.recursion_desired);
        assert_eq!(addresses(&reply), [ip(1)]);
        assert_eq!(reply.answers[0].ttl, 30);
        assert!(reply.edns.is_none(), "EDNS only for clients that use it");
    }
    let reply = served.ask(&query("reviews.bookinfo.svc.cluster.local.", Kind::AAAA)).await;
    assert_eq!(addresses(&reply), [v6]);
    let metrics = served.metrics();
    let labels = |kind: &str, protocol: &str| {
        format!(
            "istio_dns_requests_total{{request_query_type=\"{kind}\",request_protocol=\"{protocol}\",\
             source_canonical_service=\"curl\",source_canonical_revision=\"v1\"}} 1"
        )
    };
    for (kind, protocol) in [("A", "udp"), ("A", "tcp"), ("AAAA", "udp")] {
        assert!(metrics.contains(&labels(kind, protocol)), "{kind} {protocol} in\n{metrics}");
    }
    assert!(!metrics.contains("istio_dns_upstream"), "nothing left the node");
    assert_eq!(ports::DNS, 15053);
}

#[tokio::test]
async fn the_reply_comes_from_the_address_that_was_asked() {
    let served = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    let asked = query("reviews.bookinfo.svc.cluster.local.", Kind::A).to_vec().unwrap();
    // Connected sockets hear only their peer, so a reply from another local address would be lost.
    for last in [1, 2, 250] {
        let client = served.client_of(served.slot(last)).await;
        exchange(&client, &asked).await;
    }
    // A client that asks several nameservers through one socket checks where the reply is from, as musl does.
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for last in [3, 4] {
        client.send_to(&asked, served.slot(last)).await.unwrap();
        let (_, from) = soon(client.recv_from(&mut [0; 512])).await.unwrap();
        assert_eq!(from, served.slot(last));
    }
}

#[tokio::test]
async fn hardening_b81_other_types_of_mesh_names_stay_on_the_node() {
    let served = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    for kind in [Kind::ANY, Kind::TXT, Kind::HTTPS, Kind::SVCB, Kind::SRV, Kind::MX, Kind::AAAA, Kind::Unknown(4711)] {
        let reply = served.ask(&query("reviews.bookinfo.svc.cluster.local.", kind)).await;
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 0), "{kind}");
        // glibc takes an empty answer that is neither authoritative nor recursive for a lame server and asks the next one.
        assert!(reply.authoritative, "{kind}");
    }
    assert!(served.pod.locals.lock().is_empty(), "no nameserver was looked for");
}

#[tokio::test]
async fn hardening_b82_the_letters_case_is_kept() {
    let served = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    let reply = served.ask(&query("rEViews.BookInfo.svc.CLUSTER.local.", Kind::A)).await;
    assert_eq!(addresses(&reply), [ip(1)]);
    assert!(reply.queries[0].name().eq_case(&name("rEViews.BookInfo.svc.CLUSTER.local.")));
    assert!(reply.answers[0].name.eq_case(&name("rEViews.BookInfo.svc.CLUSTER.local.")));
}

#[tokio::test]
async fn hardening_b85_edns_sizes_are_clamped_and_other_versions_refused() {
    let many: Vec<IpAddr> = (0..255).map(ip).collect();
    let served = serve(FakePod::new(None).with(HOST, &many));
    let asked = query("reviews.bookinfo.svc.cluster.local.", Kind::A);
    for (payload, room) in [(0, 512), (512, 512), (1000, 1000), (4096, 1232), (65535, 1232)] {
        // hickory lifts sizes below 512, so the size is written into the bytes: class of the OPT record at the end.
        let mut bytes = with_edns(asked.clone(), 4096, 0).to_vec().unwrap();
        let at = bytes.len() - 8;
        bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(payload));
        let reply = served.exchange(&bytes).await;
        assert!(reply.len() <= room && reply.len() + 16 > room, "{payload}: {} bytes", reply.len());
        let reply = hickory_proto::op::Message::from_vec(&reply).unwrap();
        assert!(reply.truncation, "{payload}");
        assert_eq!(reply.edns.as_ref().map(|edns| (edns.max_payload(), edns.version())), Some((1232, 0)), "{payload}");
    }
    let reply = served.ask(&with_edns(asked.clone(), 1232, 1)).await;
    // 16 is BADVERS here and BADSIG elsewhere; hickory reads it as the latter.
    assert_eq!(u16::from(reply.response_code), 16);
    assert_eq!(reply.edns.map(|edns| edns.version()), Some(0));

    let mut unknown = with_edns(asked.clone(), 1232, 0);
    let option = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65001, vec![1, 2, 3]);
    unknown.edns.as_mut().unwrap().options_mut().insert(option);
    assert_eq!(served.ask(&unknown).await.response_code, ResponseCode::NoError);

    let whole = served.ask_tcp(&asked).await;
    assert_eq!((whole.answers.len(), whole.truncation), (255, false), "TCP carries all of them");
}

#[tokio::test]
async fn many_queries_share_a_connection() {
    let served = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    let mut stream = served.stream().await;
    for kind in [Kind::A, Kind::AAAA, Kind::A] {
        let bytes = query("reviews.bookinfo.svc.cluster.local.", kind).to_vec().unwrap();
        let reply = hickory_proto::op::Message::from_vec(&framed(&mut stream, &bytes).await).unwrap();
        assert_eq!(reply.answers.len(), usize::from(kind == Kind::A));
    }
}

#[tokio::test]
async fn headless_addresses_come_in_changing_order() {
    let many: Vec<IpAddr> = (0..20).map(ip).collect();
    let served = serve(FakePod::new(None).with(HOST, &many));
    let mut firsts = std::collections::HashSet::new();
    for _ in 0..30 {
        let reply = served.ask(&query("reviews.bookinfo.svc.cluster.local.", Kind::A)).await;
        assert_eq!(addresses(&reply), many);
        let RData::A(first) = &reply.answers[0].data else { panic!("an address") };
        firsts.insert(first.0);
    }
    assert!(firsts.len() > 3, "{firsts:?}");
}
