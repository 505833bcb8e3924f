//! On folders of the disk: what is put there and taken away, by whom else it is changed meanwhile, and what is never written through.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

fn places(root: &Path) -> Places {
    fs::create_dir_all(root.join("net.d")).unwrap();
    fs::create_dir_all(root.join("state")).unwrap();
    fs::write(root.join("state/scope.json"), "{}").unwrap();
    fs::write(root.join("mesh-cni"), b"program").unwrap();
    Places {
        plugin: root.join("mesh-cni"),
        bin_dir: root.join("bin"),
        conf_dir: root.join("net.d"),
        socket: root.join("cni.sock"),
        scope: root.join("state/scope.json"),
        own_file: false,
        cache: root.join("results"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn program_and_entry_are_put_there_once_and_taken_away_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    assert!(ensure(&places, false, false).unwrap_err().why.contains("no network configuration yet"));
    assert_eq!(names(&places.bin_dir), [conflist::TYPE]);
    let conf = places.conf_dir.join("10-a.conflist");
    fs::write(&conf, LIST).unwrap();
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    let chain = "10-a.conflist".to_owned();
    assert_eq!(ensure(&places, false, false), Ok(Done { chain: chain.clone(), edited: true, ..Done::default() }));
    assert_eq!(ensure(&places, false, false), Ok(Done { chain, ..Done::default() }));
    assert_eq!(names(&places.conf_dir), ["10-a.conflist"]);
    assert_eq!(fs::metadata(&conf).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(places.bin_dir.join(conflist::TYPE)).unwrap().mode() & 0o777, 0o755);

    fs::write(&places.plugin, b"newer program").unwrap();
    ensure(&places, false, false).unwrap();
    assert_eq!(fs::read(places.bin_dir.join(conflist::TYPE)).unwrap(), b"newer program");

    assert_eq!(remove(&places), Ok(true));
    let left: Value = serde_json::from_slice(&fs::read(&conf).unwrap()).unwrap();
    assert_eq!(left, serde_json::from_str::<Value>(LIST).unwrap());
    assert_eq!(names(&places.bin_dir), Vec::<String>::new());
    assert!(!root.path().join("state").exists());
    assert_eq!(remove(&places), Ok(false));
}

#[test]
fn hardening_b137_no_link_is_written_through_and_nothing_endless_is_read() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let elsewhere = root.path().join("elsewhere");
    fs::write(&elsewhere, LIST).unwrap();
    symlink(&elsewhere, places.conf_dir.join("10-a.conflist")).unwrap();
    fs::create_dir_all(&places.bin_dir).unwrap();
    symlink(&elsewhere, places.bin_dir.join(conflist::TYPE)).unwrap();
    assert!(ensure(&places, false, false).unwrap().edited);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LIST);
    assert!(fs::symlink_metadata(places.conf_dir.join("10-a.conflist")).unwrap().is_file());

    // Nor what leads from the name of an unfinished file.
    fs::write(places.conf_dir.join("10-a.conflist"), LIST).unwrap();
    symlink(&elsewhere, places.conf_dir.join(".10-a.conflist.undermesh")).unwrap();
    assert!(ensure(&places, false, false).unwrap().edited);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LIST);
    assert_eq!(names(&places.conf_dir), ["10-a.conflist"]);

    fs::write(places.conf_dir.join("05-long.conflist"), vec![b' '; 10 << 20]).unwrap();
    nix::unistd::mkfifo(&places.conf_dir.join("06-pipe.conflist"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", places.conf_dir.join("07-zero.conflist")).unwrap();
    symlink("nowhere", places.conf_dir.join("08-loose.conflist")).unwrap();
    fs::create_dir(places.conf_dir.join("09-folder.conflist")).unwrap();
    let Done { chain, edited, remark, .. } = ensure(&places, false, false).unwrap();
    assert_eq!((chain.as_str(), edited), ("10-a.conflist", false));
    assert!(remark.unwrap().contains("05-long.conflist: longer than 1048576 bytes: containerd gives no pod a network"));

    // No program to install: the chain is not touched.
    fs::write(places.conf_dir.join("10-a.conflist"), LIST).unwrap();
    fs::remove_file(&places.plugin).unwrap();
    assert!(ensure(&places, false, false).unwrap_err().why.contains("mesh-cni"));
    assert_eq!(fs::read_to_string(places.conf_dir.join("10-a.conflist")).unwrap(), LIST);
}

#[test]
fn no_pod_waits_on_a_node_of_which_nobody_knows_who_is_in_the_mesh() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let conf = places.conf_dir.join("10-a.conflist");
    fs::write(&conf, LIST).unwrap();
    fs::remove_file(&places.scope).unwrap();
    assert!(ensure(&places, false, false).unwrap_err().why.contains("not yet told"));
    assert_eq!(fs::read_to_string(&conf).unwrap(), LIST);
    assert_eq!(names(&places.bin_dir), [conflist::TYPE]);
    fs::write(&places.scope, "{}").unwrap();
    assert!(ensure(&places, false, false).unwrap().edited);
    // Once it is there it stays, and is kept right, whatever becomes of the file.
    fs::remove_file(&places.scope).unwrap();
    assert!(!ensure(&places, false, false).unwrap().edited);
}

#[test]
fn the_program_stays_while_a_file_names_it() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let conf = places.conf_dir.join("10-a.conflist");
    fs::write(&conf, LIST).unwrap();
    ensure(&places, false, false).unwrap();
    // Somebody copies the file and is not done.
    let whole = fs::read(&conf).unwrap();
    fs::write(&conf, &whole[..whole.len() - 3]).unwrap();
    assert!(remove(&places).unwrap_err().contains("10-a.conflist: still names"));
    assert_eq!(names(&places.bin_dir), [conflist::TYPE]);
    fs::write(&conf, &whole).unwrap();
    remove(&places).unwrap();
    assert_eq!(names(&places.bin_dir), Vec::<String>::new());
}

#[test]
fn a_list_is_for_the_readers_of_the_file_that_it_was_made_from() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let conf = places.conf_dir.join("10-a.conf");
    fs::write(&conf, r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge","token":"secret"}"#).unwrap();
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(ensure(&places, false, false).unwrap().chain, "10-a.conflist");
    let mode = |name: &str| fs::metadata(places.conf_dir.join(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("10-a.conflist"), 0o600);
    remove(&places).unwrap();
    assert_eq!((names(&places.conf_dir), mode("10-a.conf")), (vec!["10-a.conf".to_owned()], 0o600));
}

#[test]
fn hardening_f46_two_of_us_take_turns() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let conf = places.conf_dir.join("10-a.conf");
    fs::write(&conf, r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#).unwrap();
    let entry = conflist::entry("/run/u/cni.sock", "/var/lib/u/scope.json", &[]);
    let inode = format!(":{} ", fs::metadata(&places.conf_dir).unwrap().ino());
    let one_waits = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
    };
    let edits: [(&str, &(dyn Fn() -> bool + Sync)); 2] = [
        ("10-a.conflist", &|| chain(&places.conf_dir, &entry, true, Own::Off).is_ok()),
        ("10-a.conf", &|| unchain(&places.conf_dir).is_ok()),
    ];
    for (after, edit) in edits {
        let held = turn(&places.conf_dir);
        let before = names(&places.conf_dir);
        std::thread::scope(|scope| {
            let other = scope.spawn(edit);
            let deadline = Instant::now() + Duration::from_secs(60);
            while !one_waits() {
                assert!(Instant::now() < deadline, "nobody waits");
                std::thread::yield_now();
            }
            assert_eq!(names(&places.conf_dir), before);
            drop(held);
            assert!(other.join().unwrap());
        });
        assert_eq!(names(&places.conf_dir), [after]);
    }
}

#[test]
fn hardening_f46_our_own_file_stands_before_what_others_write_anew() {
    let root = tempfile::tempdir().unwrap();
    let places = Places { own_file: true, ..places(root.path()) };
    let (conf, own) = (places.conf_dir.join("10-a.conflist"), places.conf_dir.join("00-undermesh.conflist"));
    fs::write(&conf, LIST).unwrap();
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    let chain = "00-undermesh.conflist".to_owned();
    let first = Done { chain: chain.clone(), edited: true, own_put: true, ..Done::default() };
    assert_eq!(ensure(&places, false, false), Ok(first.clone()));
    assert_eq!(ensure(&places, false, false), Ok(Done { chain: chain.clone(), ..Done::default() }));
    // Somebody takes it away: it is put back, unless it is to rest; the entry in the other one is at once.
    fs::remove_file(&own).unwrap();
    fs::write(&conf, LIST).unwrap();
    let behind = Done { chain: "10-a.conflist".to_owned(), edited: true, ..Done::default() };
    assert_eq!((ensure(&places, false, true), own.exists()), (Ok(behind), false));
    assert_eq!(ensure(&places, false, false), Ok(first));
    assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o600);
    let names_us = |path: &Path| fs::read_to_string(path).unwrap().contains(conflist::TYPE);
    assert!(names_us(&own) && names_us(&conf));

    // Half written, and then anew.
    let before = fs::read(&own).unwrap();
    fs::write(&conf, &LIST[..20]).unwrap();
    let done = ensure(&places, false, false).unwrap();
    assert!(done.chain == chain && done.remark.unwrap().contains("stays as it was: 10-a.conflist: not JSON"));
    assert_eq!(fs::read(&own).unwrap(), before);
    fs::write(&conf, LIST.replace("bridge", "ptp")).unwrap();
    assert!(names_us(&own) && !names_us(&conf));
    assert!(ensure(&places, false, false).unwrap().edited);
    assert!(names_us(&own) && names_us(&conf) && fs::read_to_string(&own).unwrap().contains("ptp"));

    // Gone for a moment, and for good.
    fs::remove_file(&conf).unwrap();
    assert!(ensure(&places, false, false).unwrap().orphaned && own.exists());
    assert!(ensure(&places, true, false).unwrap_err().why.contains("no network configuration yet"));
    assert_eq!(names(&places.conf_dir), Vec::<String>::new());

    // Not wanted any more; and taken off the node.
    fs::write(&conf, LIST).unwrap();
    ensure(&places, false, false).unwrap();
    let off = Places { own_file: false, ..places.clone() };
    assert_eq!((ensure(&off, false, false).unwrap().chain.as_str(), own.exists()), ("10-a.conflist", false));
    ensure(&places, false, false).unwrap();
    remove(&places).unwrap();
    assert_eq!((names(&places.conf_dir), names_us(&conf)), (vec!["10-a.conflist".to_owned()], false));
}
