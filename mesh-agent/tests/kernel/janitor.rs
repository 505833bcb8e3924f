//! Clears what a test process leaves that was killed, as by a timeout: nothing of it is dropped then. Started with the first cgroup of a process.

use std::{
    os::unix::process::CommandExt,
    process::{self, Child, Command, Stdio},
    sync::OnceLock,
};

/// Reads until the process that started it has ended, however it did; its instances bear its number. What has been dropped is not there any more.
/// A process that is being killed takes a moment to leave its cgroup.
const SCRIPT: &str = r#"
cat > /dev/null
for cgroup in "$0/undermesh-test-$1"-*; do
    [ -d "$cgroup" ] || continue
    echo 1 > "$cgroup/cgroup.kill"
    tries=0
    while [ -d "$cgroup" ] && [ $tries -lt 100 ]; do
        find "$cgroup" -depth -type d -exec rmdir {} \;
        [ -d "$cgroup" ] && sleep 0.1
        tries=$((tries + 1))
    done
done
rm -rf "/sys/fs/bpf/undermesh/undermesh-test-$1"-* "/sys/fs/bpf/undermesh-test-$1"
"#;

/// Starts it, once in a process.
pub fn start() {
    // Kept and never dropped: the pipe closes when the process ends.
    static JANITOR: OnceLock<Child> = OnceLock::new();
    JANITOR.get_or_init(|| {
        Command::new("sh")
            .args(["-c", SCRIPT, super::V2, &process::id().to_string()])
            // What ends the tests' group of processes must not end it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
}
