//! Connections that live on another thread than the one that accepted them.

use std::time::{Duration, Instant};

use mesh_runtime::lanes::Lanes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mesh::*;

/// The first lane, which is where the test's own thread counts as being, is kept busy: connections move to the second one, work there in both directions,
/// and dial a tunnel of their own.
#[tokio::test]
async fn features_connections_of_a_busy_thread_move_to_an_idle_one_and_share_no_tunnel_with_it() {
    let (lanes, running) = Lanes::start("test", 2).unwrap();
    let pair = Pair::on(lanes.clone(), Lanes::here(), |_| ());
    pair.sync();
    pair.server.echo(APP, "");
    let mut stays = pair.client.connect(pair.server_address()).await;
    exchange(&mut stays, "on the thread that accepted").await;
    assert_eq!(pair.near.shared.pool.stats().tunnels, 1);

    let busy = lanes.handles().next().unwrap().spawn(async {
        // It has to use most of a core, also while everything else wants both. Who may not ask for that needs a machine with time to spare.
        let _ = rustix::process::setpriority_process(None, -20);
        loop {
            tokio::task::yield_now().await;
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while pair.near.shared.pool.stats().tunnels < 2 {
        assert!(Instant::now() < deadline, "every connection stayed with the busy thread");
        let mut app = pair.client.connect(pair.server_address()).await;
        exchange(&mut app, "wherever there is time").await;
        app.shutdown().await.unwrap();
        assert_eq!(soon(app.read(&mut [0])).await.unwrap(), 0);
    }
    busy.abort();
    exchange(&mut stays, "still there").await;
    eventually("those that moved have left the registry", || pair.client.live() == 1).await;
    running.stop();
}
