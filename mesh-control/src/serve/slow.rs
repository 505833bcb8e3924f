//! Clients that take what they are sent and do not answer, over a real connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::NamespacedName;
use mesh_core::policy::{Action, Policy, Scope};
use mesh_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, discovery as wire};
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
use crate::access::who::Share;
use crate::access::who::Who;
use crate::index::View;
use crate::metrics::Metrics;
use crate::world::World;

/// Binds also those who do answer, on any machine.
const ANSWER: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(60);

type Responses = tonic::Streaming<wire::DeltaDiscoveryResponse>;

/// A server of one view.
struct Server {
    address: String,
    tokens: Arc<Tokens>,
    throttle: Throttle,
    _folder: tempfile::TempDir,
    _view: watch::Sender<Arc<View>>,
    _world: watch::Sender<Arc<World>>,
    _drain: Drain,
}

impl Server {
    async fn start(view: View) -> Server {
        let folder = tempfile::tempdir().unwrap();
        crate::state::folder(folder.path()).unwrap();
        let tokens = Arc::new(Tokens::open(folder.path(), "c".into()).unwrap());
        let view = watch::Sender::new(Arc::new(view));
        let world = watch::Sender::new(Arc::new(World::default().next(&view.borrow())));
        let (metrics, drain, throttle) = (Arc::<Metrics>::default(), Drain::new(), Throttle::default());
        let access = Access::new(Verifier::Own(tokens.clone()), view.subscribe(), metrics.clone());
        let discovery = Discovery {
            access: access.clone(),
            world: world.subscribe(),
            streams: Arc::<Streams>::default(),
            throttle: throttle.clone(),
            reading: Throttle::reading(),
            answer: ANSWER,
            lines: Lines::default(),
            metrics,
            drain: drain.token(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = Authenticated::new("xds", access, discovery);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Server { address, tokens, throttle, _folder: folder, _view: view, _world: world, _drain: drain }
    }

    /// A stream of `node`, which asks for these types at once.
    async fn open(&self, node: &str, types: &[&str]) -> (mpsc::Sender<wire::DeltaDiscoveryRequest>, Responses) {
        let now = mesh_runtime::clock::now();
        let token =
            self.tokens.issue(&Who::Node { name: node.into(), uid: None }, Duration::from_secs(3600), now).unwrap();
        let channel = Endpoint::from_shared(self.address.clone()).unwrap().connect().await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let (requests, stream) = mpsc::channel(4);
        for url in types {
            requests.send(ask(url, "")).await.unwrap();
        }
        let mut request = Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        (requests, client.delta_aggregated_resources(request).await.unwrap().into_inner())
    }
}

fn ask(url: &str, nonce: &str) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        type_url: url.into(),
        node: Some(wire::Node { id: "n".into(), ..wire::Node::default() }),
        response_nonce: nonce.into(),
        ..wire::DeltaDiscoveryRequest::default()
    }
}

async fn next(responses: &mut Responses) -> Result<wire::DeltaDiscoveryResponse, tonic::Status> {
    tokio::time::timeout(DEADLINE, responses.message()).await.unwrap().map(Option::unwrap)
}

/// Whether the stream is served: what nobody has is answered at once.
async fn is_served(requests: &mpsc::Sender<wire::DeltaDiscoveryRequest>, responses: &mut Responses) {
    let again = wire::DeltaDiscoveryRequest { resource_names_subscribe: vec!["x".into()], ..ask(ADDRESS_TYPE, "") };
    requests.send(again).await.unwrap();
    assert_eq!(next(responses).await.unwrap().removed_resources, ["x"]);
}

#[tokio::test]
async fn hardening_B103_who_does_not_answer_is_let_go_and_who_does_is_not() {
    let server = Server::start(View { nodes: [("n1".into(), None)].into(), ..View::default() }).await;
    let mut streams = Vec::new();
    for answers in [false, true] {
        let (requests, mut responses) = server.open("n1", &[ADDRESS_TYPE]).await;
        let nonce = next(&mut responses).await.unwrap().nonce;
        if answers {
            requests.send(ask(ADDRESS_TYPE, &nonce)).await.unwrap();
        }
        streams.push((requests, responses));
    }
    let since = Instant::now();
    let end = next(&mut streams[0].1).await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::DeadlineExceeded, "the client does not answer"));
    // The other one has been silent for as long, and is still served.
    let (requests, responses) = &mut streams[1];
    tokio::time::sleep_until((since + 2 * ANSWER).into()).await;
    is_served(requests, responses).await;
}

#[tokio::test]
async fn hardening_B103_the_wait_for_a_place_is_not_the_client_s() {
    let nodes: Vec<String> = (0..8).map(|n| format!("n{n}")).collect();
    let name = NamespacedName::new("shop", "x".repeat(600 << 10));
    let (scope, action) = (Scope::WorkloadSelector, Action::Deny);
    let policy = Policy { name: name.clone(), scope, action, rules: Vec::new(), dry_run: false };
    let known = nodes.iter().map(|node| (node.as_str().into(), None)).collect();
    let server =
        Server::start(View { nodes: known, policies: [(name, Arc::new(policy))].into(), ..View::default() }).await;
    let (mut places, mut streams) = (Vec::new(), Vec::new());
    for node in &nodes {
        places.push(server.throttle.place(&Share::Node(node.as_str().into())).await);
        let (requests, mut responses) = server.open(node, &[ADDRESS_TYPE, AUTHORIZATION_TYPE]).await;
        // Answered while the server waits for its turn with the next one, and reads nothing.
        let nonce = next(&mut responses).await.unwrap().nonce;
        requests.send(ask(ADDRESS_TYPE, &nonce)).await.unwrap();
        streams.push((requests, responses));
    }
    tokio::time::sleep(2 * ANSWER).await;
    drop(places);
    for (requests, mut responses) in streams {
        let large = next(&mut responses).await.unwrap();
        assert_eq!(large.type_url, AUTHORIZATION_TYPE);
        requests.send(ask(AUTHORIZATION_TYPE, &large.nonce)).await.unwrap();
        is_served(&requests, &mut responses).await;
    }
}
