//! Clients that take what they are sent and do not answer, over a real connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_proto::{ADDRESS_TYPE, discovery as wire};
use mesh_runtime::drain::Drain;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::server::{Discovery, Streams};
use super::throttle::Throttle;
use crate::access::check::{Access, Verifier};
use crate::access::layer::Authenticated;
use crate::access::pace::Lines;
use crate::access::token::Tokens;
use crate::index::View;
use crate::metrics::Metrics;
use crate::world::World;

const ANSWER: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn hardening_B103_who_does_not_answer_is_let_go_and_who_does_is_not() {
    let folder = tempfile::tempdir().unwrap();
    crate::state::folder(folder.path()).unwrap();
    let tokens = Arc::new(Tokens::open(folder.path(), "c".into()).unwrap());
    let now = mesh_runtime::clock::now();
    let token = tokens.issue("n1", None, Duration::from_secs(3600), now).unwrap();
    let nodes = [("n1".into(), None)].into();
    let view = watch::Sender::new(Arc::new(View { nodes, ..View::default() }));
    let world = watch::Sender::new(Arc::new(World::default().next(&view.borrow())));
    let (metrics, drain) = (Arc::<Metrics>::default(), Drain::new());
    let access = Access::new(Verifier::Own(tokens), view.subscribe(), metrics.clone());
    let discovery = Discovery {
        access: access.clone(),
        world: world.subscribe(),
        streams: Arc::<Streams>::default(),
        throttle: Throttle::default(),
        answer: ANSWER,
        lines: Lines::default(),
        metrics,
        drain: drain.token(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = Authenticated::new("xds", access, AggregatedDiscoveryServiceServer::new(discovery));
    let server = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let first = || wire::DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        node: Some(wire::Node { id: "n1".into(), ..wire::Node::default() }),
        ..wire::DeltaDiscoveryRequest::default()
    };
    let mut ends = Vec::new();
    for answers in [false, true] {
        let channel = Endpoint::from_shared(address.clone()).unwrap().connect().await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let (requests, stream) = mpsc::channel(4);
        requests.send(first()).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        let response = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap().unwrap().unwrap();
        if answers {
            let ack = wire::DeltaDiscoveryRequest { response_nonce: response.nonce, ..first() };
            requests.send(ack).await.unwrap();
        }
        ends.push((requests, responses, Instant::now()));
    }
    let (_requests, responses, since) = &mut ends[0];
    let since = *since;
    let end = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::DeadlineExceeded, "the client does not answer"));
    // The other one has been silent for as long, and is still served.
    let (requests, responses, _) = &mut ends[1];
    tokio::time::sleep_until((since + 3 * ANSWER).into()).await;
    let again = wire::DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".into()], ..first() };
    requests.send(again).await.unwrap();
    let response = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.removed_resources, ["x"]);
    server.abort();
}
