//! Waits until something holds, with progress, a deadline and an end by Ctrl-C that says what was left. Called by `install` and `uninstall`.

use std::time::Duration;

use crate::output::note;
use crate::progress::Progress;
use crate::stop::{FAILED, INTERRUPTED, Stop};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(700);

/// What a look found.
pub struct Look<T> {
    /// One line for each thing that is waited for.
    pub lines: Vec<String>,
    /// Nothing is left to wait for.
    pub is_done: bool,
    /// What there is now.
    pub value: T,
}

/// Looks until it is done. An error of a look is shown and looked past: an API server may be away for a moment. At the end of the time the
/// error holds what was left.
pub async fn until<T, F>(what: &str, mut progress: Progress, mut look: impl FnMut() -> F) -> Result<T, Stop>
where
    F: Future<Output = Result<Look<T>, Stop>>,
{
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut left = vec![format!("{what}: not looked at yet")];
    loop {
        let found = tokio::select! {
            found = look() => found,
            _ = &mut interrupted => return Err(given_up(INTERRUPTED, &format!("{what}: stopped"), &left)),
        };
        match found {
            Ok(found) if found.is_done => {
                progress.show(&found.lines);
                return Ok(found.value);
            }
            Ok(found) => left = found.lines,
            Err(error) => left = vec![format!("{what}: {error}")],
        }
        progress.show(&left);
        if progress.is_late() {
            let why = format!("{what}: not done after {} (--timeout)", crate::output::elapsed(progress.elapsed()));
            return Err(given_up(FAILED, &why, &left));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut interrupted => return Err(given_up(INTERRUPTED, &format!("{what}: stopped"), &left)),
        }
    }
}

fn given_up(code: u8, why: &str, left: &[String]) -> Stop {
    Stop::new(code, format!("{why}; left were\n  {}", left.join("\n  ")))
}

/// Does it, unless Ctrl-C ends it first: `changes` says whether something may have been done by then. Whoever listens for that signal once takes its effect away for good, so that it has to be listened for all the
/// time; what waits by [`until`] hears it, too, and has more to say.
pub async fn or_interrupted<T>(changes: bool, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    let stopped = match changes {
        true => "stopped half way: what was done stays; the same command again goes on from there",
        false => "stopped; nothing was changed",
    };
    tokio::select! {
        biased;
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            Err(Stop::new(INTERRUPTED, stopped))
        }
    }
}

/// Asks on a terminal, unless the answer was given before.
pub async fn confirm(question: &str, is_yes: bool) -> Result<(), Stop> {
    use std::io::{BufRead, IsTerminal};
    if is_yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Stop::new(crate::stop::USAGE, format!("{question}\nsay --yes where nobody can be asked")));
    }
    note(&format!("{question} [y/N]"));
    // On another thread, so that Ctrl-C is heard meanwhile.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
    match matches!(answer.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(Stop::new(INTERRUPTED, "nothing was changed")),
    }
}

/// How long to wait: a number with a unit, at most a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a whole number with s, m or h, such as 5m".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
    match seconds {
        1..=86400 => Ok(Duration::from_secs(seconds)),
        _ => Err("write a time from 1s to 24h".into()),
    }
}
