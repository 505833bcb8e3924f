//! Places where a test can have a process fail: whoever passes one panics if the test has named it. Debug builds only; in a release build
//! passing one is nothing.
//!
//! Passed where the work of a connection, a pod or a part of the process begins. Named by the fault tests (F6), one a line, in the file
//! that [`VARIABLE`] names: the file is read at each pass, and a name that has had its panic is taken out of it.

/// Environment variable with the path of the file.
pub const VARIABLE: &str = "UNDERMESH_FAILPOINTS";

/// Panics if a test wants that here.
#[cfg(debug_assertions)]
pub fn pass(point: &str) {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    // One name is one panic, whoever else passes at the same time.
    static PASSING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let Some(file) = &*FILE else { return };
    let passing = PASSING.lock();
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut names: Vec<&str> = text.lines().collect();
    let Some(place) = names.iter().position(|name| *name == point) else { return };
    names.remove(place);
    let _ = std::fs::write(file, names.join("\n"));
    drop(passing);
    panic!("fail point {point}");
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_: &str) {}
