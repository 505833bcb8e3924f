//! Keeps the plugin installed on the node: the program, and its entry in the chain. Follows the folder of the chain and puts right what other
//! writers do to it. Started by the worker; what is edited how is decided by [`super::conflist`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_runtime::{DrainToken, ReadyGuard, task};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::conflist::{self, Change, ConfFile, Edit};
use crate::enrol::kube::SYSTEM;

/// How often the folder is looked at though nothing was heard of it: a folder that was replaced tells nothing.
const LOOK: Duration = Duration::from_secs(2);
/// At least so long between two looks: a writer that fights for the chain must not keep us busy.
const QUIET: Duration = Duration::from_millis(50);
/// How long a writer who has our entry in what he writes is waited for when it is to go.
const SETTLE: Duration = Duration::from_secs(2);
/// More files than this are not a folder of network configurations.
const MOST: usize = 256;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// The program to be installed.
    pub plugin: PathBuf,
    /// The folder where runtimes look for plugins.
    pub bin_dir: PathBuf,
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// The agent's socket for the plugin, as the node sees it.
    pub socket: PathBuf,
    /// The file of the scope, as the node sees it.
    pub scope: PathBuf,
}

/// How it is, for the admin socket.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The file of the chain that has our entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// It was taken off the node by an order.
    pub uninstalled: bool,
}

/// Orders and questions to the installer. Without one nothing is installed.
#[derive(Clone, Debug)]
pub struct CniHandle {
    orders: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
    status: watch::Receiver<Status>,
    /// How often the chain was edited.
    pub edits: Arc<AtomicU64>,
}

impl CniHandle {
    /// Takes the plugin off the node until the next start of the agent.
    pub async fn uninstall(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let stopping = || "the agent is stopping".to_owned();
        self.orders.send(reply).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

/// The task.
#[derive(Debug)]
pub struct Installer {
    places: Places,
    orders: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    status: watch::Sender<Status>,
    edits: Arc<AtomicU64>,
}

impl Installer {
    /// The task and its handle.
    pub fn new(places: Places) -> (Installer, CniHandle) {
        let (orders, ordered) = mpsc::channel(1);
        let (tells, status) = watch::channel(Status::default());
        let edits = Arc::new(AtomicU64::new(0));
        let handle = CniHandle { orders, status, edits: edits.clone() };
        (Installer { places, orders: ordered, status: tells, edits }, handle)
    }

    /// Starts it; `chained` is met when the chain has our entry for the first time.
    pub fn spawn(self, chained: ReadyGuard, drain: DrainToken) {
        task::spawn_vital("CNI chain", self.run(chained, drain));
    }

    async fn run(mut self, chained: ReadyGuard, drain: DrainToken) {
        let mut chained = Some(chained);
        // One pending event is as good as many.
        let (sender, mut events) = mpsc::channel(1);
        let mut watcher = None;
        loop {
            watcher = watcher.or_else(|| follow(&self.places, &sender));
            if !self.status.borrow().uninstalled {
                self.look().await;
                if self.status.borrow().chain.is_some()
                    && let Some(chained) = chained.take()
                {
                    chained.met();
                }
            }
            tokio::select! {
                () = drain.started() => return,
                _ = events.recv() => tokio::time::sleep(QUIET).await,
                () = tokio::time::sleep(LOOK) => {}
                Some(reply) = self.orders.recv() => {
                    let places = self.places.clone();
                    let removed = blocking(move || remove(&places)).await;
                    if removed.is_ok() {
                        tracing::info!("the CNI plugin is taken off this node");
                        self.status.send_replace(Status { uninstalled: true, ..Status::default() });
                    }
                    let _ = reply.send(removed);
                }
            }
        }
    }

    async fn look(&mut self) {
        let places = self.places.clone();
        let looked = blocking(move || ensure(&places)).await;
        let status = match looked {
            Ok(Done { chain, edited }) => {
                if edited {
                    self.edits.fetch_add(1, Relaxed);
                    tracing::info!(chain, "the CNI chain has our entry");
                }
                Status { chain: Some(chain), ..Status::default() }
            }
            Err(trouble) => Status { trouble: Some(trouble), ..Status::default() },
        };
        let changed = self.status.send_if_modified(|last| {
            let changed = *last != status;
            *last = status;
            changed
        });
        if changed && let Some(trouble) = &self.status.borrow().trouble {
            tracing::warn!(
                trouble,
                "the CNI chain has no entry of ours: new pods are captured a moment after they start"
            );
        }
    }
}

/// Hears of changes in the two folders, if they are there.
fn follow(places: &Places, sender: &mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let sender = sender.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = sender.try_send(());
        }
    })
    .ok()?;
    let watched = [&places.conf_dir, &places.bin_dir].map(|folder| watcher.watch(folder, RecursiveMode::NonRecursive));
    watched.into_iter().all(|result| result.is_ok()).then_some(watcher)
}

/// What [`ensure`] found or did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Done {
    /// The file of the chain.
    pub chain: String,
    /// It was edited just now.
    pub edited: bool,
}

/// Puts program and entry where they belong, if they are not there. Blocking.
pub fn ensure(places: &Places) -> Result<Done, String> {
    // The program first: an entry without one would keep every pod of the node from starting.
    install_program(places)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let entry = conflist::entry(&text(&places.socket), &text(&places.scope), &SYSTEM);
    chain(&places.conf_dir, &entry, places.scope.exists())
}

fn chain(folder: &Path, entry: &Value, scope_is_there: bool) -> Result<Done, String> {
    let _turn = turn(folder);
    let files = read(folder)?;
    // Of a node of which nobody knows yet who is in the mesh, every pod would wait, and for ever if the agent may not ask.
    if !scope_is_there && conflist::names_us(&files).is_none() {
        return Err("the API server has not yet told who is in the mesh".to_owned());
    }
    match conflist::install(&files, entry) {
        Edit::Chained(chain) => Ok(Done { chain, edited: false }),
        Edit::Impossible(why) => Err(format!("{}: {why}", folder.display())),
        Edit::Change(change) => {
            let chain = change.write.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
            carry_out(folder, change, &files).map_err(|error| format!("{}: {error}", folder.display()))?;
            Ok(Done { chain, edited: true })
        }
    }
}

/// Takes entries and program off the node. Blocking; harmless if they are not there.
pub fn remove(places: &Places) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    if places.conf_dir.exists() {
        unchain(&places.conf_dir)?;
    }
    for path in [&program(places), &places.scope] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path, error)),
            _ => {}
        }
    }
    // Ours if nothing else is in it.
    if let Some(folder) = places.scope.parent() {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Takes the entries out. The program may go only when no file names it any more: a runtime that does not find one of a chain gives no pod a network.
fn unchain(folder: &Path) -> Result<(), String> {
    let _turn = turn(folder);
    let began = Instant::now();
    loop {
        let files = read(folder)?;
        let changes = conflist::uninstall(&files);
        let done = changes.into_iter().try_for_each(|change| carry_out(folder, change, &files));
        let files = read(folder)?;
        let why = match (done, conflist::names_us(&files)) {
            (Ok(()), None) => return Ok(()),
            (Err(error), _) => format!("{}: {error}", folder.display()),
            (Ok(()), Some(name)) => {
                let path = folder.join(name);
                format!(
                    "{}: still names {}: if nobody is writing it, mend or remove it",
                    path.display(),
                    conflist::TYPE
                )
            }
        };
        if began.elapsed() > SETTLE {
            return Err(why);
        }
        std::thread::sleep(QUIET);
    }
}

/// Held by whoever of us edits the folder: an agent, and a command that cleans up. Where the file system has no locks, it goes without.
fn turn(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    let _ = folder.lock();
    Some(folder)
}

fn program(places: &Places) -> PathBuf {
    places.bin_dir.join(conflist::TYPE)
}

fn install_program(places: &Places) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let ours = fs::read(&places.plugin).map_err(|error| failed(&places.plugin, error))?;
    let target = program(places);
    let there = fs::symlink_metadata(&target);
    let fits = |metadata: &fs::Metadata| {
        metadata.is_file() && metadata.len() == ours.len() as u64 && metadata.mode() & 0o111 == 0o111
    };
    if there.is_ok_and(|metadata| fits(&metadata)) && fs::read(&target).is_ok_and(|there| there == ours) {
        return Ok(());
    }
    fs::create_dir_all(&places.bin_dir).map_err(|error| failed(&places.bin_dir, error))?;
    replace(&target, &ours, 0o755).map_err(|error| failed(&target, error))
}

/// The files that a runtime would look at.
fn read(folder: &Path) -> Result<Vec<ConfFile>, String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !conflist::counts(&name) {
            continue;
        }
        if files.len() == MOST {
            return Err(format!("{}: more than {MOST} network configurations", folder.display()));
        }
        let content = bounded(&entry.path());
        files.push(ConfFile { name, content });
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn bounded(path: &Path) -> Result<Vec<u8>, String> {
    // A link is read, as runtimes do; what is no file (a pipe, say) is not waited for.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(conflist::LONGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.len() as u64 > conflist::LONGEST {
        true => Err(format!("longer than {} bytes", conflist::LONGEST)),
        false => Ok(bytes),
    }
}

/// Carries a change of what was seen out. Whoever writes at this moment has the last word; we look again when he has.
fn carry_out(folder: &Path, change: Change, seen: &[ConfFile]) -> io::Result<()> {
    let as_seen = |name: &str| {
        let path = folder.join(name);
        let now = fs::symlink_metadata(&path).is_ok().then(|| bounded(&path));
        match now.as_ref() == seen.iter().find(|file| file.name == *name).map(|file| &file.content) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody else is writing there")),
        }
    };
    if let Some((name, bytes)) = &change.write {
        // What takes the place of another file is for the same readers: there may be secrets in it.
        let mode = |name: &String| fs::metadata(folder.join(name)).map(|metadata| metadata.mode() & 0o777).ok();
        let mode = mode(name).or_else(|| change.remove.as_ref().and_then(mode)).unwrap_or(0o644);
        let may = || change.remove.iter().chain([name]).try_for_each(|name| as_seen(name));
        replace_when(&folder.join(name), bytes, mode, may)?;
    }
    let Some(name) = &change.remove else { return Ok(()) };
    as_seen(name)?;
    fs::remove_file(folder.join(name))
}

/// Replaces a file as a whole: it is the old one or the new one at every moment, also when the power fails. A link is replaced, and not what it
/// leads to.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_when(path, bytes, mode, || Ok(()))
}

/// The same, if it may be, which is asked at the last moment: a disk may take its time for the bytes.
fn replace_when(path: &Path, bytes: &[u8], mode: u32, may: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No runtime looks at a name like this.
    let unfinished = folder.join(format!(".{name}.undermesh"));
    // One that was broken off, or a link, is not written through.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        may()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
        return written;
    }
    File::open(folder)?.sync_all()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
        assert!(ensure(&places).unwrap_err().contains("no network configuration yet"));
        assert_eq!(names(&places.bin_dir), [conflist::TYPE]);
        let conf = places.conf_dir.join("10-a.conflist");
        fs::write(&conf, LIST).unwrap();
        fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
        let chain = "10-a.conflist".to_owned();
        assert_eq!(ensure(&places), Ok(Done { chain: chain.clone(), edited: true }));
        assert_eq!(ensure(&places), Ok(Done { chain, edited: false }));
        assert_eq!(names(&places.conf_dir), ["10-a.conflist"]);
        assert_eq!(fs::metadata(&conf).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(places.bin_dir.join(conflist::TYPE)).unwrap().mode() & 0o777, 0o755);

        fs::write(&places.plugin, b"newer program").unwrap();
        ensure(&places).unwrap();
        assert_eq!(fs::read(places.bin_dir.join(conflist::TYPE)).unwrap(), b"newer program");

        remove(&places).unwrap();
        let left: Value = serde_json::from_slice(&fs::read(&conf).unwrap()).unwrap();
        assert_eq!(left, serde_json::from_str::<Value>(LIST).unwrap());
        assert_eq!(names(&places.bin_dir), Vec::<String>::new());
        assert!(!root.path().join("state").exists());
        remove(&places).unwrap();
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
        assert!(ensure(&places).unwrap().edited);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LIST);
        assert!(fs::symlink_metadata(places.conf_dir.join("10-a.conflist")).unwrap().is_file());

        // Nor what leads from the name of an unfinished file.
        fs::write(places.conf_dir.join("10-a.conflist"), LIST).unwrap();
        symlink(&elsewhere, places.conf_dir.join(".10-a.conflist.undermesh")).unwrap();
        assert!(ensure(&places).unwrap().edited);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LIST);
        assert_eq!(names(&places.conf_dir), ["10-a.conflist"]);

        fs::write(places.conf_dir.join("05-long.conflist"), vec![b' '; 10 << 20]).unwrap();
        nix::unistd::mkfifo(&places.conf_dir.join("06-pipe.conflist"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", places.conf_dir.join("07-zero.conflist")).unwrap();
        symlink("nowhere", places.conf_dir.join("08-loose.conflist")).unwrap();
        fs::create_dir(places.conf_dir.join("09-folder.conflist")).unwrap();
        assert_eq!(ensure(&places), Ok(Done { chain: "10-a.conflist".to_owned(), edited: false }));

        // No program to install: the chain is not touched.
        fs::write(places.conf_dir.join("10-a.conflist"), LIST).unwrap();
        fs::remove_file(&places.plugin).unwrap();
        assert!(ensure(&places).unwrap_err().contains("mesh-cni"));
        assert_eq!(fs::read_to_string(places.conf_dir.join("10-a.conflist")).unwrap(), LIST);
    }

    #[test]
    fn no_pod_waits_on_a_node_of_which_nobody_knows_who_is_in_the_mesh() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let conf = places.conf_dir.join("10-a.conflist");
        fs::write(&conf, LIST).unwrap();
        fs::remove_file(&places.scope).unwrap();
        assert!(ensure(&places).unwrap_err().contains("not yet told"));
        assert_eq!(fs::read_to_string(&conf).unwrap(), LIST);
        assert_eq!(names(&places.bin_dir), [conflist::TYPE]);
        fs::write(&places.scope, "{}").unwrap();
        assert!(ensure(&places).unwrap().edited);
        // Once it is there it stays, and is kept right, whatever becomes of the file.
        fs::remove_file(&places.scope).unwrap();
        assert!(!ensure(&places).unwrap().edited);
    }

    #[test]
    fn the_program_stays_while_a_file_names_it() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let conf = places.conf_dir.join("10-a.conflist");
        fs::write(&conf, LIST).unwrap();
        ensure(&places).unwrap();
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
        assert_eq!(ensure(&places).unwrap().chain, "10-a.conflist");
        let mode = |name: &str| fs::metadata(places.conf_dir.join(name)).unwrap().mode() & 0o777;
        assert_eq!(mode("10-a.conflist"), 0o600);
        remove(&places).unwrap();
        assert_eq!((names(&places.conf_dir), mode("10-a.conf")), (vec!["10-a.conf".to_owned()], 0o600));
    }

    #[test]
    fn hardening_f46_who_writes_while_we_do_has_the_last_word() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        let file = |name: &str| folder.join(name);
        let theirs = || fs::write(file("10-a.conflist"), "theirs");
        fs::write(file("10-a.conflist"), LIST).unwrap();
        // Between what was seen and the moment at which the file is replaced.
        let seen = read(folder).unwrap();
        theirs().unwrap();
        let change = |write: Option<&str>, remove: Option<&str>| Change {
            write: write.map(|name| (name.to_owned(), b"ours".to_vec())),
            remove: remove.map(str::to_owned),
        };
        for change in [
            change(Some("10-a.conflist"), None),
            change(None, Some("10-a.conflist")),
            change(Some("10-b.conflist"), Some("10-a.conflist")),
        ] {
            assert_eq!(carry_out(folder, change, &seen).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        }
        let busy = replace_when(&file("10-a.conflist"), b"ours", 0o644, || Err(io::ErrorKind::ResourceBusy.into()));
        assert!(busy.is_err());
        // A file that was not there.
        assert!(carry_out(folder, change(Some("10-a.conflist"), None), &[]).is_err());
        assert_eq!(
            (names(folder), fs::read(file("10-a.conflist")).unwrap()),
            (vec!["10-a.conflist".to_owned()], b"theirs".to_vec())
        );
        carry_out(folder, change(Some("10-a.conflist"), None), &read(folder).unwrap()).unwrap();
        assert_eq!(fs::read(file("10-a.conflist")).unwrap(), b"ours");
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
            ("10-a.conflist", &|| chain(&places.conf_dir, &entry, true).is_ok()),
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
    fn hardening_f49_a_write_that_fails_leaves_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.conflist");
        fs::write(&path, LIST).unwrap();
        // What is unfinished cannot be made: its name is a folder's.
        fs::create_dir(root.path().join(".a.conflist.undermesh")).unwrap();
        assert!(replace(&path, b"new", 0o644).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), LIST);
    }
}
