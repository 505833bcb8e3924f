//! Load by `wrk` and `h2load`, whose numbers others know, too.
use crate::harness::Pod;
use crate::harness::process::Program;
use anyhow::{Context, Result as Anyhow, bail};
use std::time::Duration;

/// What is asked at once.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Connections with one request each.
    Http1 {
        /// How many.
        connections: u32,
    },
    /// Connections with several.
    Http2 {
        /// How many.
        connections: u32,
        /// Requests of each.
        streams: u32,
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Result {
    /// Answered requests.
    pub requests: u64,
    /// Those that failed, or had another status than 2xx.
    pub failed: u64,
    /// Requests in a second.
    pub per_second: f64,
    /// Half of them were faster.
    pub p50_us: f64,
    /// 99 of 100 were faster.
    pub p99_us: f64,
}

/// One thread of wrk.
pub fn wrk(client: &Pod, url: &str, connections: u32, seconds: u32) -> Anyhow<Result> {
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let output = finish(client, "wrk", "wrk", &["-t1", &connections, &duration, "--latency", url], seconds)?;
    read_wrk(&output).with_context(|| format!("wrk said: {output}"))
}

/// One thread of h2load.
pub fn h2load(client: &Pod, url: &str, connections: u32, streams: u32, seconds: u32) -> Anyhow<Result> {
    let log = tempfile::NamedTempFile::new()?;
    let path = log.path().display().to_string();
    let (connections, streams) = (format!("-c{connections}"), format!("-m{streams}"));
    let (duration, log_file) = (format!("-D{seconds}"), format!("--log-file={path}"));
    let args = ["-t1", &connections, &streams, &duration, "--warm-up-time=0", &log_file, url];
    let output = finish(client, "h2load", "nghttp2-client", &args, seconds)?;
    let times = std::fs::read_to_string(log.path())?;
    read_h2load(&output, &times, seconds).with_context(|| format!("h2load said: {output}"))
}

/// Runs a program in the client's pod to its end, and gives what it said; `package` is what brings it.
pub fn finish(client: &Pod, program: &str, package: &str, args: &[&str], seconds: u32) -> Anyhow<String> {
    let Some(path) = find(program) else {
        bail!("{program} is not installed: `apt-get install {package}`, then again");
    };
    let process = client.spawn(client.inside(Program::new(program, path).args(args)))?;
    Ok(process.wait(Duration::from_secs(u64::from(seconds) + 30))?.success()?.stdout)
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What wrk says with `--latency`.
fn read_wrk(text: &str) -> Option<Result> {
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).map(str::to_owned);
    let line = |begin: &str| text.lines().map(str::trim).find(|line| line.starts_with(begin));
    let requests = text.lines().find(|line| line.contains(" requests in "))?;
    let errors = line("Socket errors:").map_or(0, |line| {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok()).sum()
    });
    let bad = line("Non-2xx or 3xx responses:").and_then(|line| word(line, 4)?.parse::<u64>().ok()).unwrap_or(0);
    Some(Result {
        requests: word(requests, 0)?.parse().ok()?,
        failed: errors + bad,
        per_second: word(line("Requests/sec:")?, 1)?.parse().ok()?,
        p50_us: micros(&word(line("50%")?, 1)?)?,
        p99_us: micros(&word(line("99%")?, 1)?)?,
    })
}

/// `1.23ms`, `456.00us`, `1.01s`
fn micros(text: &str) -> Option<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

/// What h2load says, and its log: a line for each request, with its status and its microseconds in the second and third column.
fn read_h2load(text: &str, log: &str, seconds: u32) -> Option<Result> {
    let line = text.lines().find(|line| line.starts_with("requests:"))?;
    let number = |what: &str| -> Option<u64> {
        let part = line.trim_start_matches("requests:").split(',').find(|part| part.trim().ends_with(what))?;
        part.split_whitespace().next()?.parse().ok()
    };
    let rows = log.lines().filter_map(|row| {
        let mut columns = row.split_whitespace().skip(1);
        Some((columns.next()?.parse::<i32>().ok()?, columns.next()?.parse::<f64>().ok()?))
    });
    let mut times = Vec::new();
    let mut bad = 0;
    for (status, time) in rows {
        match status {
            200..=299 => times.push(time),
            _ => bad += 1,
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Some(Result {
        requests: times.len() as u64,
        failed: bad.max(number("failed")? + number("errored")? + number("timeout")?),
        per_second: times.len() as f64 / f64::from(seconds),
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_read() {
        let text = "Running 5s test @ http://198.18.1.2:8081/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency     0.93ms  100us   9ms   80%\n  Latency Distribution\n     50%  455.00us\n     75%    1.10ms\n     90%    1.20ms\n     99%    2.50ms\n  \
                    158212 requests in 5.00s, 170MB read\n  Socket errors: connect 0, read 1, write 0, timeout 2\n  Non-2xx or 3xx responses: 7\nRequests/sec:  31642.11\n";
        let expected = Result { requests: 158_212, failed: 10, per_second: 31_642.11, p50_us: 455.0, p99_us: 2500.0 };
        assert_eq!(read_wrk(text), Some(expected));
        assert_eq!(read_wrk("unable to connect"), None);
    }

    #[test]
    fn h2load_is_read() {
        let text = "finished in 2.00s, 2.00 req/s, 1KB/s\nrequests: 4 total, 4 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout\n";
        let log = "1\t200\t100\n2\t200\t300\n3\t200\t200\n4\t503\t9\n";
        let read = read_h2load(text, log, 2).unwrap();
        assert_eq!((read.requests, read.failed, read.per_second, read.p50_us, read.p99_us), (3, 1, 1.5, 200.0, 300.0));
    }
}
