//! Tests of flags, environment and defaults.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;

use super::*;

/// A good command line, as (flag, value), over existing files.
fn good() -> BTreeMap<&'static str, OsString> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let pairs = [
        ("node", "node-a"),
        ("control", "198.18.0.1:15012"),
        ("control-root", file),
        ("token", file),
        ("run-dir", "/run/undermesh/a"),
        ("pods-cgroup", "/sys/fs/cgroup/unified"),
        ("agent-cgroup", "/sys/fs/undermesh-agent"),
    ];
    pairs.into_iter().map(|(flag, value)| (flag, OsString::from(value))).collect()
}

fn parse(flags: &BTreeMap<&'static str, OsString>, environment: &[(&str, OsString)]) -> Result<Config, Problems> {
    let arguments = flags.iter().map(|(flag, value)| {
        let mut argument = OsString::from(format!("--{flag}="));
        argument.push(value);
        argument
    });
    let cli = Cli::try_parse_from([OsString::from("mesh-agent")].into_iter().chain(arguments)).unwrap();
    let lookup =
        |name: &str| environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.clone());
    let mut result = cli.flags.resolve(&lookup);
    // Whether this machine has cgroup v2 is not what these tests are about.
    if let Err(problems) = &mut result {
        problems.lines.retain(|line| !line.contains("is not a cgroup v2 folder"));
    }
    result
}

#[test]
fn defaults_fill_what_is_not_given_and_flags_win_over_the_environment() {
    let mut flags = good();
    flags.insert("drain", "500ms".into());
    let environment = [("UNDERMESH_DRAIN", "9s".into()), ("UNDERMESH_WORKERS", "3".into())];
    let Ok(config) = parse(&flags, &environment) else { return };
    assert_eq!((config.instance.as_str(), config.drain, config.workers), ("node-a", Duration::from_millis(500), 3));
    assert_eq!(config.metrics, "0.0.0.0:15020".parse().unwrap());
    assert!(config.to_string().contains("trust_domain=\"cluster.local\""));
}

#[test]
fn hardening_b192_wrong_flags_are_all_reported_with_status_64() {
    let rows = [
        ("metrics", "abc"),
        ("metrics", "198.18.0.1:65536"),
        ("readiness", "-1"),
        ("drain", "5"),
        ("drain", "99999m"),
        ("workers", "0"),
        ("workers", "100000"),
        ("log-format", "xml"),
        ("log-level", "loud"),
        ("control", "198.18.0.1"),
        ("control", "fd00:198::1"),
        ("instance", "../x"),
        ("run-dir", "relative"),
        ("trust-domain", "a/b"),
        ("udp", "refuse"),
        ("zds", "ztunnel.sock"),
        ("kubelet-port", "0"),
        ("kubelet-port", "65536"),
        ("cni", "true"),
        ("cni-conf-dir", "net.d"),
        ("cni-own-file", "true"),
        ("mesh-ranges", "0.0.0.0/0"),
        ("mesh-ranges", "198.18.0.1/15"),
    ];
    for (flag, value) in rows {
        let mut flags = good();
        flags.insert(flag, value.into());
        let problems = parse(&flags, &[]).unwrap_err();
        assert_eq!(problems.status, EXIT_USAGE, "{flag}={value}");
        assert!(problems.lines.iter().any(|line| line.contains(&format!("--{flag} is {value:?}"))), "{problems:?}");
    }
    let problems = parse(&BTreeMap::from([("workers", "0".into())]), &[]).unwrap_err();
    assert_eq!(problems.lines.iter().filter(|line| line.contains("missing")).count(), 7, "{problems:?}");
    assert!(problems.lines.iter().any(|line| line.starts_with("--workers")));
}

/// A secret on the command line would stand in the list of processes; there is only a file for it.
#[test]
fn hardening_b198_a_secret_is_not_taken_as_an_argument_and_not_repeated() {
    let secret = "eyJhbGciOiJFUzI1NiJ9.c2VjcmV0";
    let expected = |name: &str| vec![format!("{name} is not shown, expected an absolute path")];
    let mut flags = good();
    flags.insert("token", secret.into());
    assert_eq!(parse(&flags, &[]).unwrap_err().lines, expected("--token"));
    flags.remove("token");
    let problems = parse(&flags, &[("UNDERMESH_TOKEN", secret.into())]).unwrap_err();
    assert_eq!(problems.lines, expected("UNDERMESH_TOKEN"));
}

#[test]
fn hardening_b193_wrong_environment_is_named_with_status_78() {
    let not_utf8 = OsString::from_vec(vec![0xff, 0xfe]);
    let rows: [(&str, OsString, &str); 6] = [
        ("UNDERMESH_WORKERS", "".into(), "UNDERMESH_WORKERS is empty"),
        ("UNDERMESH_WORKERS", "8Gi".into(), "UNDERMESH_WORKERS is \"8Gi\", expected a number from 1 to 512"),
        ("UNDERMESH_WORKERS", "100m".into(), "UNDERMESH_WORKERS is \"100m\", expected a number from 1 to 512"),
        ("UNDERMESH_CLUSTER_ID", not_utf8, "UNDERMESH_CLUSTER_ID is not UTF-8"),
        ("UNDERMESH_LOG_LEVEL", "info\n".into(), "UNDERMESH_LOG_LEVEL contains control characters"),
        (
            "UNDERMESH_DRAIN",
            "1d".into(),
            "UNDERMESH_DRAIN is \"1d\", expected a duration like 5s, 500ms or 2m, at most 1h",
        ),
    ];
    for (variable, value, expected) in rows {
        let problems = parse(&good(), &[(variable, value)]).unwrap_err();
        assert_eq!(problems, Problems { lines: vec![expected.to_owned()], status: EXIT_CONFIG });
    }
}

#[test]
fn hardening_b192_unknown_repeated_and_unfinished_flags_are_usage_errors() {
    for line in [&["--nope"][..], &["--node"], &["--node", "a", "--node", "b"], &["neither"], &["worker", "--nope"]] {
        let error = Cli::try_parse_from([&["mesh-agent"], line].concat()).unwrap_err();
        assert!(error.use_stderr(), "{line:?}");
    }
}

#[test]
fn an_agent_below_or_above_its_pods_is_refused() {
    for (agent, expected) in [
        ("/sys/fs/cgroup/unified/agent", "capture itself"),
        ("/sys/fs/cgroup/unified", "capture itself"),
        ("/sys/fs/cgroup", "told from the agent"),
    ] {
        let mut flags = good();
        flags.insert("agent-cgroup", agent.into());
        let problems = parse(&flags, &[]).unwrap_err();
        assert!(problems.lines.iter().any(|line| line.contains(expected)), "{agent}: {problems:?}");
    }
}

#[test]
fn the_cni_plugin_needs_somebody_who_says_which_pods_are_meant() {
    let mut flags = good();
    flags.insert("cni", "on".into());
    let problems = parse(&flags, &[]).unwrap_err();
    assert_eq!(problems.status, EXIT_USAGE);
    assert!(problems.lines.iter().any(|line| line.starts_with("--cni on needs --kube")), "{problems:?}");
    // Taking it away needs nobody.
    flags.insert("cni", "remove".into());
    let lines = parse(&flags, &[]).map_or_else(|problems| problems.lines, |_| Vec::new());
    assert!(!lines.iter().any(|line| line.contains("cni")), "{lines:?}");
    flags.insert("cni", "on".into());
    flags.insert("kube", "cluster".into());
    if let Err(problems) = parse(&flags, &[]) {
        assert!(problems.lines.is_empty(), "{problems:?}");
    }
}

#[test]
fn one_at_most_says_which_pods_are_in_the_mesh() {
    let mut flags = good();
    flags.insert("zds", "/run/ztunnel/ztunnel.sock".into());
    if let Ok(config) = parse(&flags, &[]) {
        assert_eq!(config.zds.as_deref(), Some(Path::new("/run/ztunnel/ztunnel.sock")));
    }
    flags.insert("kube", "cluster".into());
    let problems = parse(&flags, &[]).unwrap_err();
    assert_eq!(problems.status, EXIT_USAGE);
    assert!(problems.lines.iter().any(|line| line.starts_with("--zds and --kube")), "{problems:?}");
}

#[test]
fn unreadable_files_are_reported_by_name() {
    let mut flags = good();
    flags.insert("token", "/nonexistent/token".into());
    let problems = parse(&flags, &[]).unwrap_err();
    assert_eq!(problems.status, EXIT_CONFIG);
    assert!(problems.lines[0].starts_with("--token: cannot read \"/nonexistent/token\""), "{problems:?}");
}

#[test]
fn a_file_of_revocations_may_be_given_and_must_then_be_there() {
    let mut flags = good();
    if let Ok(config) = parse(&flags, &[]) {
        assert_eq!(config.crl, None);
    }
    flags.insert("crl", "/nonexistent/crl.pem".into());
    let problems = parse(&flags, &[]).unwrap_err();
    assert_eq!(problems.status, EXIT_CONFIG);
    assert!(problems.lines[0].starts_with("--crl: cannot read \"/nonexistent/crl.pem\""), "{problems:?}");
    flags.insert("crl", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into());
    if let Ok(config) = parse(&flags, &[]) {
        assert!(config.crl.is_some());
    }
}

/// With the processes of a node that has no pod, nobody can tell where the pods will be.
#[test]
fn cgroups_are_found_with_kube_only_and_what_cannot_be_found_is_told() {
    let proc = tempfile::tempdir().unwrap();
    let mut flags = good();
    flags.extend([("kube", "cluster".into()), ("proc", proc.path().into())]);
    assert!(parse(&flags, &[]).map_or_else(|problems| problems.lines.is_empty(), |_| true), "both are given");
    flags.remove("agent-cgroup");
    let config = parse(&flags, &[]);
    assert!(config.map_or_else(
        |problems| problems.lines.is_empty(),
        |config| config.agent_cgroup == Path::new("/sys/fs/cgroup/undermesh")
    ));
    flags.remove("pods-cgroup");
    let problems = parse(&flags, &[]).unwrap_err();
    assert_eq!(problems.status, EXIT_CONFIG);
    assert!(problems.lines.iter().any(|line| line.starts_with("--pods-cgroup: no process in")), "{problems:?}");
    flags.insert("kube", "off".into());
    let problems = parse(&flags, &[]).unwrap_err();
    assert!(problems.lines.iter().any(|line| line.starts_with("--pods-cgroup (or")), "{problems:?}");
}

#[test]
fn a_cleanup_needs_no_credentials() {
    let nothing = |_: &str| None;
    let cleanup = |line: &str| {
        let arguments = line.split(' ');
        match Cli::try_parse_from(arguments).unwrap().role {
            Some(Role::Cleanup(flags)) => flags.traces(&nothing),
            other => panic!("{other:?}"),
        }
    };
    let line = "mesh-agent cleanup --node=n.1 --control=c:1 --control-root=/gone --token=/gone --run-dir=/run/u --pods-cgroup=/gone/p --agent-cgroup=/gone/a --cni-conf-dir=/gone/net.d";
    let expected = Traces {
        instance: "n-1".into(),
        bpffs: "/sys/fs/bpf/undermesh".into(),
        run_dir: "/run/u".into(),
        netns: "/run/netns".into(),
        agent_cgroup: Some("/gone/a".into()),
        cni: CniFlags {
            run_dir: "/run/u".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_conf_dir: "/gone/net.d".into(),
            cni_state_dir: "/var/lib/undermesh".into(),
            cni_cache_dir: "/var/lib/cni/results".into(),
        },
    };
    assert_eq!(cleanup(line), Ok(expected));
    let problems = cleanup("mesh-agent cleanup --node=n1 --run-dir=run").unwrap_err();
    assert_eq!((problems.status, problems.lines.len()), (EXIT_USAGE, 1), "{:?}", problems.lines);
}
