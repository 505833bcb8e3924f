//! A real cluster of `cargo xtask cluster` for one test: made, used from the network of its first node, and removed whatever the end is.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::Value as Json;

/// Nothing on a cluster takes longer, on any machine.
pub const LONG: Duration = Duration::from_secs(240);

/// Beside the tests, if it was built.
fn xtask() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("xtask")
}

/// Why the test cannot run here, if it cannot.
pub fn hindrance() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if !xtask().exists() {
        return Some("xtask is not built".into());
    }
    let output = Command::new(xtask()).args(["cluster", "build", "--check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.lines().find_map(|line| line.split_once("missing: ")) {
        Some((_, what)) => Some(format!("missing: {what}")),
        None if output.status.success() => None,
        None => panic!("what is missing cannot be told: {said}"),
    }
}

/// One cluster.
pub struct Cluster {
    index: String,
    janitor: Option<Child>,
    _claim: File,
}

impl Cluster {
    /// The first free one from the top, or the one that the environment names.
    pub fn up(options: &[&str]) -> Cluster {
        let wanted = std::env::var("UNDERMESH_CLUSTER").ok().and_then(|index| index.parse().ok());
        let indices: Vec<u8> = wanted.map_or_else(|| (1..8).rev().collect(), |index| vec![index]);
        for index in indices {
            let path = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(path).unwrap();
            let index = index.to_string();
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                continue;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let line = format!("read -r _; exec '{}' cluster --cluster {index} down", xtask().display());
            let janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().unwrap();
            let mut cluster = Cluster { index, janitor: Some(janitor), _claim: claim };
            let output = cluster.verb(&[&["up"], options].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("is there already") {
                // Somebody who knows nothing of our locks was first: it is not ours to end.
                let mut janitor = cluster.janitor.take().unwrap();
                janitor.kill().and_then(|()| janitor.wait()).unwrap();
                continue;
            }
            assert!(output.status.success(), "{said}");
            return cluster;
        }
        panic!("all clusters of this machine are in use");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(xtask());
        command.args(["cluster", "--cluster", &self.index]).args(arguments).stdin(Stdio::null());
        command
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a verb that must succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.verb(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// kubectl as the admin, past all faults; what it printed, or its complaint.
    pub fn kubectl(&self, line: &str) -> Result<String, String> {
        let output = self.verb(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// An object; `None` if there is none.
    pub fn object(&self, line: &str) -> Option<Json> {
        let text = self.kubectl(&format!("get {line} -o json --ignore-not-found")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Applies objects; what is said of them, or the complaint.
    pub fn try_apply(&self, objects: &str) -> Result<String, String> {
        let mut command = self.command(&["kubectl", "apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(objects.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    pub fn apply(&self, objects: &str) {
        self.try_apply(objects).unwrap();
    }

    /// Waits until something is so. Other threads go on meanwhile.
    pub async fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + LONG;
        while !tokio::task::block_in_place(&mut is_so) {
            assert!(Instant::now() < deadline, "{what} does not become true");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> String {
        let path = "jsonpath={.status.addresses[0].address}";
        self.kubectl(&format!("get node {node} -o {path}")).unwrap()
    }

    /// Writes a kubeconfig of a service account, which has that account's rights and no others.
    pub fn kubeconfig(&self, namespace: &str, account: &str, path: &Path) {
        let token = self.kubectl(&format!("create token {account} -n {namespace} --duration 24h")).unwrap();
        let folder = xtask().parent().and_then(Path::parent).unwrap().join(format!("cluster{}", self.index));
        let admin = fs::read_to_string(folder.join("admin.kubeconfig")).unwrap();
        let user = admin.lines().find(|line| line.starts_with("users:")).unwrap();
        let own = format!("users: [{{name: admin, user: {{token: \"{}\"}}}}]", token.trim());
        fs::write(path, admin.replace(user, &own)).unwrap();
    }

    /// Runs a future in the network of the first node, with all the threads that it starts.
    pub fn inside<F: Future<Output = ()>>(&self, work: impl FnOnce() -> F + Send) {
        let netns = File::open(format!("/run/netns/um{}-n1", self.index)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                runtime.unwrap().block_on(work());
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
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
