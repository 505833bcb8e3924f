//! Requests whose tunnel fails them before the answer: which of them are asked again, and where.

use std::time::Instant;

use http::StatusCode;

use super::*;
use crate::hbone::{AcceptorConfig, Patience, PoolConfig, hpack};

/// What a peer does with a request.
#[derive(Clone, Copy)]
enum Deed {
    Answer,
    /// Nothing.
    Ignore,
    /// Only answers the PING that is sent for the request.
    Sign,
    Refuse,
    /// GOAWAY that does not count the request among those it has seen.
    Leave,
    /// Closes the connection.
    Die,
    /// Answers 503, or resets the request, and ends the connection in the same breath.
    DenyAndEnd,
    ResetAndEnd,
}

/// A peer whose tunnels do as they are told, one deed for each request, and the agent that asks it.
struct Scene {
    lab: Lab,
    key: TunnelKey,
    dials: Arc<AtomicUsize>,
}

impl Scene {
    async fn new(config: PoolConfig, tunnels: &'static [&'static [Deed]]) -> Self {
        let lab = Lab::with(config, AcceptorConfig::default()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = key_to(&lab, &listener);
        let server = lab.server.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            for deeds in tunnels {
                let hand = Hand::accept(&server, &listener).await;
                held.push(tokio::spawn(serve(hand, deeds)));
            }
            // Whoever dials once more is heard by nobody.
            std::future::pending::<()>().await;
        });
        Self { lab, key, dials: Arc::default() }
    }

    async fn ask(&self) -> Result<HboneStream, HboneError> {
        let (dials, port) = (self.dials.clone(), self.key.destination);
        let dial = move || {
            dials.fetch_add(1, Relaxed);
            TcpStream::connect(port)
        };
        let request = ConnectRequest::to("10.0.0.9:80".parse().unwrap());
        let answer = self.lab.pool.connect(&self.key, self.lab.client.clone(), dial, request);
        soon("answer", answer).await.map(|(stream, _)| stream)
    }

    fn dials(&self) -> usize {
        self.dials.load(Relaxed)
    }
}

fn status_block(status: StatusCode) -> Vec<u8> {
    let mut block = Vec::new();
    hpack::status(&mut block, status);
    block
}

async fn serve(mut hand: Hand, deeds: &[Deed]) {
    for deed in deeds {
        let stream = hand.wait(kind::HEADERS).await.stream;
        let mut out = Vec::new();
        match deed {
            Deed::Answer => frame::headers(&mut out, stream, false, &[0x88]),
            Deed::Ignore => {}
            Deed::Sign => {
                hand.wait(kind::PING).await;
                frame::ping(&mut out, true, *b"anybody?");
            }
            Deed::Refuse => frame::rst_stream(&mut out, stream, frame::code::REFUSED_STREAM),
            Deed::Leave => frame::goaway(&mut out, stream - 2, frame::code::NO_ERROR, ""),
            Deed::Die => return,
            Deed::DenyAndEnd => frame::headers(&mut out, stream, true, &status_block(StatusCode::SERVICE_UNAVAILABLE)),
            Deed::ResetAndEnd => frame::rst_stream(&mut out, stream, frame::code::CONNECT_ERROR),
        }
        hand.send(CONTENT_DATA, &out).await;
        if matches!(deed, Deed::DenyAndEnd | Deed::ResetAndEnd) {
            hand.tcp.shutdown().await.unwrap();
        }
    }
    std::future::pending().await
}

#[tokio::test]
async fn hardening_F1_a_request_that_its_tunnel_fails_is_asked_again_in_a_fresh_one() {
    use Deed::{Answer, Die, Leave, Refuse};
    let cases: [&'static [&'static [Deed]]; 3] =
        [&[&[Answer, Refuse], &[Answer]], &[&[Answer, Leave], &[Answer]], &[&[Answer, Die], &[Answer]]];
    for (number, tunnels) in cases.into_iter().enumerate() {
        let scene = Scene::new(PoolConfig::default(), tunnels).await;
        let _first = scene.ask().await.unwrap();
        assert!(scene.ask().await.is_ok(), "case {number}");
        assert_eq!(scene.dials(), 2, "case {number}");
    }
}

/// The second tunnel of a dead peer may not know yet that it is dead too.
#[tokio::test]
async fn a_lost_request_does_not_go_to_a_sibling_of_the_tunnel_that_lost_it() {
    use Deed::{Answer, Die};
    let config = PoolConfig { max_streams: 1, ..PoolConfig::default() };
    // Either of the first two tunnels gets the third request.
    let scene = Scene::new(config, &[&[Answer, Die], &[Answer, Die], &[Answer]]).await;
    let both = (scene.ask().await.unwrap(), scene.ask().await.unwrap());
    assert_eq!(scene.lab.pool.stats().tunnels, 2);
    drop(both);
    until("both have room", || scene.lab.pool.stats().streams == 0).await;
    assert!(scene.ask().await.is_ok());
    assert_eq!(scene.dials(), 3);
}

/// Answer and end arrive together: by the time that the asking task runs the tunnel is lost.
#[tokio::test]
async fn hardening_F1_a_request_that_was_answered_or_reset_is_not_asked_again() {
    use Deed::{Answer, DenyAndEnd, ResetAndEnd};
    let denied = Scene::new(PoolConfig::default(), &[&[Answer, DenyAndEnd], &[Answer]]).await;
    let _first = denied.ask().await.unwrap();
    let error = denied.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::Refused(StatusCode::SERVICE_UNAVAILABLE)), "{error}");
    assert_eq!(denied.dials(), 1);

    let reset = Scene::new(PoolConfig::default(), &[&[Answer, ResetAndEnd], &[Answer]]).await;
    let _first = reset.ask().await.unwrap();
    let error = reset.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::Reset(frame::code::CONNECT_ERROR)), "{error}");
    assert_eq!(reset.dials(), 1);
}

#[tokio::test]
async fn a_request_that_is_lost_again_is_given_up() {
    use Deed::{Answer, Die};
    let scene = Scene::new(PoolConfig::default(), &[&[Answer, Die], &[Die], &[Answer]]).await;
    let _first = scene.ask().await.unwrap();
    let error = scene.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::Closed(_)), "{error}");
    assert_eq!(scene.dials(), 2);
}

/// Who has dialled the tunnel that is lost does not dial another.
#[tokio::test]
async fn a_request_that_is_lost_in_a_tunnel_of_its_own_is_given_up() {
    use Deed::{Answer, Die};
    let scene = Scene::new(PoolConfig::default(), &[&[Die], &[Answer]]).await;
    let error = scene.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::Closed(_)), "{error}");
    assert_eq!(scene.dials(), 1);
    assert!(scene.ask().await.is_ok(), "the next call dials");
}

#[tokio::test]
async fn a_request_whose_tunnel_was_purged_is_given_up() {
    use Deed::{Answer, Ignore};
    let scene = Scene::new(PoolConfig::default(), &[&[Answer, Ignore], &[Answer]]).await;
    let _first = scene.ask().await.unwrap();
    let purge = async {
        until("request", || scene.lab.pool.stats().streams == 2).await;
        scene.lab.pool.purge(|_| true);
    };
    let (answer, ()) = tokio::join!(scene.ask(), purge);
    assert!(matches!(answer, Err(HboneError::Closed(_))), "{answer:?}");
    assert_eq!(scene.dials(), 1);
}

#[tokio::test]
async fn asking_again_takes_no_more_time_than_asking() {
    use Deed::{Answer, Die};
    let config = PoolConfig {
        request_timeout: Duration::from_secs(3),
        tls_timeout: Duration::from_secs(600),
        ..PoolConfig::default()
    };
    // Nobody shakes hands with the second tunnel.
    let scene = Scene::new(config, &[&[Answer, Die]]).await;
    let _first = scene.ask().await.unwrap();
    let error = scene.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::RequestTimeout), "{error}");
    assert_eq!(scene.dials(), 2);
}

/// Who may ask somebody else does not wait for a peer that has stopped, and whoever comes next not at all, until there is a sign of it. One that is only
/// slow with the request is waited for.
#[tokio::test]
async fn hardening_F47_a_peer_that_gives_no_sign_is_not_waited_for_where_there_are_others() {
    use Deed::{Answer, Ignore, Sign};
    let config = || PoolConfig { request_timeout: Duration::from_secs(2), ..PoolConfig::default() };
    let hurried = async |scene: &Scene| {
        let (began, request) = (Instant::now(), ConnectRequest::to("10.0.0.9:80".parse().unwrap()));
        let (lab, port) = (&scene.lab, scene.key.destination);
        let dial = move || TcpStream::connect(port);
        let asked = lab.pool.connect_with(&scene.key, lab.client.clone(), dial, request, Patience::Sign);
        (soon("answer", asked).await.map(drop), began.elapsed())
    };
    let silent = Scene::new(config(), &[&[Answer, Ignore, Ignore]]).await;
    let _first = silent.ask().await.unwrap();
    // The first waits for a sign; who comes next knows that there is none. A slow machine takes longer, but not as long as the request's time.
    let mut both = Vec::new();
    for _ in 0..2 {
        let (answer, took) = hurried(&silent).await;
        assert!(matches!(answer, Err(HboneError::Silent)), "{answer:?}");
        both.push(took);
    }
    assert!(both[0] >= Duration::from_millis(900) && both[1] < both[0], "{both:?}");
    // Who has nobody else to ask waits for as long as ever.
    assert!(matches!(silent.ask().await, Err(HboneError::RequestTimeout)));

    let slow = Scene::new(config(), &[&[Answer, Sign, Answer]]).await;
    let _first = slow.ask().await.unwrap();
    let (answer, _) = hurried(&slow).await;
    assert!(matches!(answer, Err(HboneError::RequestTimeout)), "{answer:?}");
    hurried(&slow).await.0.unwrap();
}

/// Who may wait until then only waits for a tunnel until then, and no longer; its dial goes on for who has more time.
#[tokio::test]
async fn hardening_3_2_a_tunnel_is_waited_for_until_it_is_too_late() {
    let config = PoolConfig { tls_timeout: Duration::from_secs(3), ..PoolConfig::default() };
    let scene = Scene::new(config, &[]).await;
    let (began, request) = (Instant::now(), ConnectRequest::to("10.0.0.9:80".parse().unwrap()));
    let (lab, port) = (&scene.lab, scene.key.destination);
    let patience = Patience::Until(tokio::time::Instant::from_std(began + Duration::from_millis(200)));
    let dial = move || TcpStream::connect(port);
    let asked = lab.pool.connect_with(&scene.key, lab.client.clone(), dial, request, patience);
    let answer = soon("answer", asked).await.map(drop);
    assert!(matches!(answer, Err(HboneError::Silent)), "{answer:?}");
    assert!(began.elapsed() >= Duration::from_millis(200));
    let error = scene.ask().await.unwrap_err();
    assert!(matches!(error, HboneError::TlsTimeout), "{error}");
    assert_eq!(scene.dials(), 0, "the dial of the first was shared");
}
