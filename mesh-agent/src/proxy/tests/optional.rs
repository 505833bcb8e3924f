//! Waypoints that may be gone without: when their clients go around them, and when not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_core::workload::{GatewayAddress, GatewayDestination, NetworkAddress};
use mesh_core::{Change, Service};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::mesh::*;
use super::net::Netns;
use super::waypoint::{TUNNEL, Waypoint, endpoint, through, waypoints};

/// The service, whose waypoint is optional.
fn optional() -> Service {
    Service { waypoint: through(), waypoint_optional: true, ..service() }
}

/// The same, with a waypoint that is known by this address alone.
fn by_address(last: u8) -> Service {
    let address = NetworkAddress { network: Default::default(), address: v4(last) };
    let single = GatewayAddress { destination: GatewayDestination::Address(address), hbone_port: TUNNEL };
    Service { waypoint: Some(single), ..optional() }
}

/// A service says that it may be gone without its waypoint: its clients go around it when none of its endpoints answers, and at no other time.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_3_2_an_optional_waypoint_is_gone_around_when_nobody_answers_there() {
    let pair = Pair::start().await;
    let direct = pair.server.echo(APP, "direct ");
    // Pods that end leave their addresses, where nobody listens.
    let _dead: Vec<Netns> = (67..=70).map(|last| pair.hub.attach(&[v4(last)])).collect();
    let dead = || (67..=70).map(|last| Change::Workload(endpoint(&format!("dead-{last}"), last)));
    pair.apply(vec![Change::Workload(serving(pair.server.workload())), Change::Service(optional())]);
    let mut gone = 0;
    let mut goes_around = async |what: &str| {
        let mut app = pair.client.connect(pair.service_address()).await;
        expect(&mut app, "direct ").await;
        exchange(&mut app, what).await;
        gone += 1;
        assert_eq!(direct.load(SeqCst), gone, "{what}");
        assert!(pair.near.metrics().contains(&format!("mesh_waypoint_bypassed_total {gone}\n")), "{what}");
    };
    goes_around("its service is not known").await;
    pair.apply(vec![Change::Service(waypoints())]);
    goes_around("it has no endpoint").await;
    // More of them than a connection tries elsewhere.
    pair.apply(dead().collect());
    goes_around("none of its endpoints answers").await;

    // By an address alone: nobody chooses.
    pair.apply(vec![Change::Service(by_address(67))]);
    goes_around("the only one does not answer").await;

    // One of five answers, and is found.
    pair.apply(vec![Change::Service(optional()), Change::Workload(endpoint("good", 66))]);
    let good = Waypoint::start(&pair, "good", 66, StatusCode::OK);
    for n in 0..8 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, &format!("request {n}")).await;
    }
    assert_eq!((good.asked.lock().len(), direct.load(SeqCst)), (8, 4));

    // Who says nothing of it is refused as ever.
    pair.apply(vec![
        Change::RemoveAddress(endpoint("good", 66).uid),
        Change::Service(Service { waypoint_optional: false, ..optional() }),
    ]);
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(direct.load(SeqCst), 4);
}

/// Their machines have died, and nothing tells: all of them together are waited for no longer than one would be, and one that lives is found among them.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_3_2_an_optional_waypoint_is_asked_no_longer_than_a_connection_may_take() {
    let limit = Duration::from_secs(4);
    let pair = Pair::with(|config| config.connect_timeout = limit).await;
    let direct = pair.server.echo(APP, "direct ");
    let dead = |last: u8| endpoint(&format!("dead-{last}"), last);
    (70..=77).for_each(|last| pair.hub.lose(v4(last)));
    pair.apply(vec![
        Change::Workload(serving(pair.server.workload())),
        Change::Service(waypoints()),
        Change::Service(optional()),
    ]);
    pair.apply((70..=77).map(|last| Change::Workload(dead(last))).collect());
    let began = Instant::now();
    let mut app = pair.client.connect(pair.service_address()).await;
    expect(&mut app, "direct ").await;
    // Two of them would have it already, if each had the time for itself.
    assert!(began.elapsed() < 2 * limit, "{:?}", began.elapsed());

    let good = Waypoint::start(&pair, "good", 66, StatusCode::OK);
    pair.apply((72..=77).map(|last| Change::RemoveAddress(dead(last).uid)).collect());
    pair.apply(vec![Change::Workload(endpoint("good", 66))]);
    for n in 0..3 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, &format!("request {n}")).await;
    }
    assert_eq!((good.asked.lock().len(), direct.load(SeqCst)), (3, 1));
}

/// Whoever gives no sign for a moment may only have been slow: where the waypoint may not be gone around he is waited for, as he would be if it were not optional.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_3_2_a_silent_endpoint_of_an_optional_waypoint_is_asked_again_unless_it_is_gone_around() {
    let pair = Pair::start().await;
    let direct = pair.server.echo(APP, "direct ");
    let slow = Waypoint::start(&pair, "slow", 66, StatusCode::OK);
    pair.apply(vec![
        Change::Workload(serving(pair.server.workload())),
        Change::Service(waypoints()),
        Change::Service(optional()),
        Change::Workload(endpoint("slow", 66)),
    ]);
    // Another one is found only when the first has been asked, and has no room.
    let busy = pair.hub.attach(&[v4(67)]);
    let (listener, dials) = (busy.listen(SocketAddr::new(v4(67), TUNNEL)), Arc::new(AtomicUsize::new(0)));
    listener.set_nonblocking(true).unwrap();
    let (listener, count) = (TcpListener::from_std(listener).unwrap(), dials.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 90]).await;
            count.fetch_add(1, SeqCst);
        }
    });
    let held = slow.answers.acquire().await.unwrap();
    let mut app = pair.client.connect(pair.service_address()).await;
    eventually("the slow one is asked", || slow.asked.lock().len() == 1).await;
    pair.apply(vec![Change::Workload(endpoint("busy", 67))]);
    eventually("the other one is asked instead", || dials.load(SeqCst) > 0).await;
    drop(held);
    exchange(&mut app, "after all").await;
    assert_eq!((slow.asked.lock().len(), direct.load(SeqCst)), (2, 0));

    // Nobody has answered: nobody is waited for.
    pair.apply(vec![Change::RemoveAddress(endpoint("busy", 67).uid)]);
    let _held = slow.answers.acquire().await.unwrap();
    let mut app = pair.client.connect(pair.service_address()).await;
    expect(&mut app, "direct ").await;
    pair.apply(vec![Change::Service(by_address(66))]);
    let mut app = pair.client.connect(pair.service_address()).await;
    expect(&mut app, "direct ").await;
}

/// Whatever a waypoint answers, and whoever answers in its place: it is there, or somebody else is.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_3_2_an_optional_waypoint_that_refuses_is_not_gone_around() {
    let pair = Pair::start().await;
    let direct = pair.server.echo(APP, "direct ");
    pair.apply(vec![
        Change::Workload(serving(pair.server.workload())),
        Change::Service(waypoints()),
        Change::Service(optional()),
    ]);
    let answers = [
        ("denying", StatusCode::FORBIDDEN),
        ("failing", StatusCode::SERVICE_UNAVAILABLE),
        ("ignorant", StatusCode::BAD_REQUEST),
    ];
    let _dead = pair.hub.attach(&[v4(90)]);
    for (last, (name, status)) in (80..).zip(answers) {
        let there = endpoint(name, last);
        let uid = there.uid.clone();
        let waypoint = Waypoint::start(&pair, name, last, status);
        pair.apply(vec![Change::Workload(there)]);
        pair.client.expect_refused(pair.service_address()).await;
        assert!(!waypoint.asked.lock().is_empty(), "{name}");
        pair.apply(vec![Change::RemoveAddress(uid)]);
    }
    // With another's certificate.
    let _other = Waypoint::start(&pair, "other", 89, StatusCode::OK);
    pair.apply(vec![Change::Workload(endpoint("expected", 89))]);
    pair.client.expect_refused(pair.service_address()).await;
    // Beside one that is down, too.
    pair.apply(vec![Change::Workload(endpoint("down", 90))]);
    for _ in 0..4 {
        pair.client.expect_refused(pair.service_address()).await;
    }
    assert_eq!(direct.load(SeqCst), 0);
    assert!(pair.near.metrics().contains("mesh_waypoint_bypassed_total 0\n"));
}
