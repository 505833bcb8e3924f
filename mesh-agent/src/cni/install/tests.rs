//! How long it rests between attempts that fail.

use std::path::Path;

use mesh_runtime::Drain;
use tokio::time::Instant as Moment;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

fn places(root: &Path) -> Places {
    let within = |name: &str| root.join(name);
    fs::create_dir_all(within("net.d")).unwrap();
    fs::create_dir_all(within("state")).unwrap();
    fs::write(within("state/scope.json"), "{}").unwrap();
    fs::write(within("mesh-cni"), b"program").unwrap();
    Places {
        plugin: within("mesh-cni"),
        bin_dir: within("bin"),
        conf_dir: within("net.d"),
        socket: within("cni.sock"),
        scope: within("state/scope.json"),
        own_file: true,
        cache: within("results"),
    }
}

/// The pauses between the first attempts to take off what cannot be taken off.
async fn pauses(places: Places) -> Vec<Duration> {
    let (installer, handle) = Installer::new(places);
    let mut status = handle.status.clone();
    let drain = Drain::new();
    let task = tokio::spawn(installer.clear(drain.token()));
    let mut at = Vec::new();
    while at.len() < 12 {
        status.changed().await.unwrap();
        assert!(status.borrow_and_update().trouble.is_some());
        at.push(Moment::now());
    }
    task.abort();
    at.windows(2).map(|two| two[1] - two[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_that_cannot_take_it_off_do_not_try_again_in_step() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    // In the place of the program is what no program is.
    fs::create_dir_all(places.bin_dir.join(super::super::conflist::TYPE)).unwrap();
    let (one, two) = (pauses(places.clone()).await, pauses(places).await);
    for (n, pause) in one.iter().chain(&two).enumerate() {
        let most = AGAIN[1].min(AGAIN[0] * 2_u32.pow((n % one.len()) as u32));
        assert!(*pause <= most + Duration::from_millis(5), "{one:?} {two:?}");
    }
    let are_apart = |(one, two): (&Duration, &Duration)| one.abs_diff(*two) > Duration::from_millis(100);
    assert!(one.iter().zip(&two).filter(|pair| are_apart(*pair)).count() > 2, "{one:?} {two:?}");
}

#[tokio::test]
async fn an_edit_that_fails_is_tried_ever_more_seldom() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let (mut installer, handle) = Installer::new(places.clone());
    let quiet = |installer: &Installer| installer.pauses(Instant::now()).0;
    // There is nothing to be edited yet: what comes then must not wait.
    for _ in 0..30 {
        installer.look().await;
        assert_eq!(quiet(&installer), QUIET, "{:?}", handle.status());
    }
    // What cannot be replaced by a file, as an immutable one.
    let own = places.conf_dir.join(OWN);
    fs::create_dir(&own).unwrap();
    fs::write(places.conf_dir.join("10-a.conflist"), LIST).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..30 {
        installer.look().await;
        assert!(handle.status().trouble.is_some_and(|trouble| trouble.contains("net.d")));
        pauses.push(quiet(&installer));
    }
    assert!(pauses[0] <= FAILED && pauses.iter().all(|pause| (QUIET..=REST).contains(pause)), "{pauses:?}");
    // Each is drawn from nothing to two seconds.
    assert!(pauses[10..].iter().sum::<Duration>() > QUIET * 40, "{pauses:?}");
    // And as ever once it succeeds.
    fs::remove_dir(&own).unwrap();
    installer.look().await;
    assert_eq!((quiet(&installer), handle.status().trouble), (QUIET, None));
}
