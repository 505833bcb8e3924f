//! Clusters for tests: one of our own, removed at the end whatever the end is, and what says why there can be none.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// One cluster of our own, removed at the end whatever the end is.
pub struct Cluster {
    pub index: String,
    janitor: Option<Child>,
    claim: Option<File>,
}

impl Cluster {
    /// The first free one that comes up.
    #[allow(dead_code, reason = "each test file uses its part")]
    pub fn up(options: &[&str]) -> Cluster {
        for mut cluster in Cluster::free() {
            let output = cluster.verb(&[&["up"], options].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("is there already") {
                // Somebody who knows nothing of our locks was first: it is not ours to end.
                let mut janitor = cluster.janitor.take().expect("a janitor");
                janitor.kill().and_then(|()| janitor.wait()).expect("killed");
                continue;
            }
            assert!(output.status.success(), "{said}\n{}", cluster.logs());
            return cluster;
        }
        panic!("all clusters of this machine are in use");
    }

    /// Free ones, none of them up, from the top: people use them from the bottom.
    pub fn free() -> impl Iterator<Item = Cluster> {
        (1..8).rev().filter_map(|index| {
            // Tests that run beside this one, in this process or another, want another cluster.
            let path = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(path).expect("a lock");
            let index = index.to_string();
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                return None;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let line = format!("read -r _; exec '{XTASK}' cluster --cluster {index} down");
            let janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().expect("a janitor");
            Some(Cluster { index, janitor: Some(janitor), claim: Some(claim) })
        })
    }

    pub fn verb(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(XTASK);
        command.args(["cluster", "--cluster", &self.index]).args(arguments).stdin(Stdio::null());
        command.output().expect("xtask starts")
    }

    /// Runs a verb that must succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.verb(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[allow(dead_code, reason = "each test file uses its part")]
    pub fn apply(&self, objects: &str) {
        let mut command = Command::new(XTASK);
        command.args(["cluster", "--cluster", &self.index, "kubectl", "apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("kubectl starts");
        child.stdin.take().expect("an input").write_all(objects.as_bytes()).expect("written");
        assert!(child.wait().expect("kubectl ends").success());
    }

    #[allow(dead_code, reason = "each test file uses its part")]
    pub fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(240);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} does not become true\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends it and looks at what is left, before anybody else may have its number.
    pub fn leaves_nothing(mut self) {
        let (index, _claim) = (self.index.clone(), self.claim.take());
        drop(self);
        assert_eq!(remains(&index), Vec::<String>::new());
    }

    /// What kubectl tells, and the last lines of each log.
    fn logs(&self) -> String {
        let target = Path::new(XTASK).parent().and_then(Path::parent).expect("a target folder");
        let mut text = String::new();
        for line in [
            "get pods -A -o wide",
            "get events -A --sort-by=.lastTimestamp",
            "-n undermesh-system logs -l app=mesh-control --tail=20 --prefix",
            "-n undermesh-system logs -l app=mesh-agent --tail=40 --prefix",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let output = self.verb(&[&["kubectl", "--request-timeout=10s"], &words[..]].concat());
            text += &format!("--- {line}\n{}", String::from_utf8_lossy(&output.stdout));
        }
        // One that did not come up is gone, but for its logs.
        let folders = ["/log", "-failed"].map(|end| target.join(format!("cluster{}{end}", self.index)));
        for entry in folders.iter().flat_map(fs::read_dir).flatten().flatten() {
            let log = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            text += &format!("--- {}\n", entry.file_name().to_string_lossy());
            lines.iter().rev().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// Whether there can be a cluster; says so where there cannot.
pub fn can_run(test: &str) -> bool {
    match hindrance() {
        Some(reason) => skip(test, &reason),
        None => true,
    }
}

/// Says what a test needs and does not find. Not by a macro: what these print is hidden when a test passes.
pub fn skip(test: &str, reason: &str) -> bool {
    writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}").expect("said");
    false
}

/// Why the test cannot run here, if it cannot.
fn hindrance() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    if user.split_whitespace().nth(1) != Some("0") {
        return Some("needs root".into());
    }
    let output = Command::new(XTASK).args(["cluster", "build", "--check"]).output().expect("xtask starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.lines().find_map(|line| line.split_once("missing: ")) {
        Some((_, what)) => Some(format!("missing: {what}")),
        None if output.status.success() => None,
        None => panic!("what is missing cannot be told: {said}"),
    }
}

/// What of a cluster the machine still shows.
pub fn remains(index: &str) -> Vec<String> {
    let prefix = format!("um{index}-");
    let mut found = Vec::new();
    let mut folders = vec!["/run/netns".into(), "/sys/fs/cgroup".into()];
    folders.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for folder in folders {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let target = Path::new(XTASK).parent().and_then(Path::parent).expect("a target folder");
    let folder = target.join(format!("cluster{index}"));
    found.extend(folder.exists().then(|| folder.display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    found.extend(mounts.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned));
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The janitor's own line ends with `down`.
        let ours = line.contains(&format!("{}/", folder.display()))
            || line.contains(&format!("cluster --cluster {index} init"));
        found.extend(ours.then_some(line));
    }
    found
}
