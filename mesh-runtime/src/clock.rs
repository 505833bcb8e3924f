//! The wall clock. It says what is valid, and nothing else: whatever waits, waits on the monotonic clock. Everybody who makes or judges
//! certificates and tokens asks here, and `clippy.toml` keeps them from asking elsewhere.
//!
//! Debug builds let a test set the clock of a process: the environment names a file that says what it shows.
//!
//! ```text
//! +86400        a day ahead        -86400        a day behind        @1800000000   it stands still there, in seconds since 1970
//! ```

use std::time::SystemTime;

/// What time it is. It may jump either way, or stand still.
#[must_use]
pub fn now() -> SystemTime {
    #[cfg(debug_assertions)]
    if let Some(shown) = of_test::now() {
        return shown;
    }
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    SystemTime::now()
}

/// Not in release builds: whoever sets the clock decides what is valid.
#[cfg(debug_assertions)]
mod of_test {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::{Duration, SystemTime};

    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("UNDERMESH_TEST_CLOCK").map(PathBuf::from));

    /// `None` unless a test has set the clock.
    pub(super) fn now() -> Option<SystemTime> {
        let text = std::fs::read_to_string(FILE.as_ref()?).ok()?;
        #[expect(clippy::disallowed_methods, reason = "the clock that is shifted")]
        shown(text.trim(), SystemTime::now())
    }

    pub(super) fn shown(text: &str, real: SystemTime) -> Option<SystemTime> {
        let (sign, seconds) = text.split_at_checked(1)?;
        let seconds = Duration::from_secs(seconds.parse().ok()?);
        match sign {
            "+" => real.checked_add(seconds),
            "-" => real.checked_sub(seconds),
            "@" => SystemTime::UNIX_EPOCH.checked_add(seconds),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(debug_assertions)]
    #[test]
    fn a_test_can_set_the_clock() {
        use std::time::Duration;
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (text, expected) in [
            ("+86400", Some(at(1_000_086_400))),
            ("-86400", Some(at(999_913_600))),
            ("@7", Some(at(7))),
            ("", None),
            ("86400", None),
            ("+", None),
            ("ü", None),
            ("+18446744073709551615", None),
        ] {
            assert_eq!(of_test::shown(text, at(1_000_000_000)), expected, "{text:?}");
        }
    }

    #[test]
    fn a_release_build_has_no_other_clock() {
        let built = |assertions: &str| {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.rs");
            let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let mut rustc = std::process::Command::new(rustc);
            rustc.args(["--edition=2024", "--crate-type=lib", "--emit=asm", "-O", "-o", "-", "-C"]);
            let output = rustc.arg(format!("debug-assertions={assertions}")).arg(source).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let name = ["UNDERMESH", "TEST", "CLOCK"].join("_");
        assert!(built("on").contains(&name));
        assert!(!built("off").contains(&name));
    }

    #[expect(clippy::disallowed_methods, reason = "what it is compared with")]
    #[test]
    fn without_one_it_is_the_systems() {
        let before = SystemTime::now();
        let now = now();
        assert!(before <= now && now <= SystemTime::now());
    }
}
