//! How connections end: a client and a server that play every order of FIN and RST and compare what each end saw. Driven by the tests
//! of half-close and reset; the same program without a mesh shows what the kernel alone does.
//!
//! The client's first line says what will happen, so both ends know what they must see. `report` asks the server what it saw.
use super::servers::listen;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// `first` ends its direction, the other answers and ends its own.
    Fin,
    /// `first` resets while both directions are open.
    Reset,
    /// `first` resets after the other has ended its direction.
    ResetHalfClosed,
}

/// One connection's script.
#[derive(Debug, Clone, Copy)]
struct Case {
    first: Side,
    ending: Ending,
    /// Bytes from client to server.
    up: usize,
    /// Bytes from server to client.
    down: usize,
}

impl Case {
    /// All of them: each order, with nothing, little and much to carry.
    fn all() -> Vec<Case> {
        const SIZES: [usize; 3] = [0, 1, 100_000];
        let mut cases = Vec::new();
        for first in [Side::Client, Side::Server] {
            for (up, down) in SIZES.iter().flat_map(|up| SIZES.map(|down| (*up, down))) {
                cases.push(Case { first, ending: Ending::Fin, up, down });
                // A reset discards what is under way, so the one who resets waits for an answer first: there must be one.
                if up > 0 && down > 0 {
                    cases.push(Case { first, ending: Ending::Reset, up, down });
                    cases.push(Case { first, ending: Ending::ResetHalfClosed, up, down });
                }
            }
        }
        cases
    }

    /// The orderly ends with `bytes` in each direction.
    fn much(bytes: usize) -> [Case; 2] {
        [Side::Client, Side::Server].map(|first| Case { first, ending: Ending::Fin, up: bytes, down: bytes })
    }

    fn line(&self) -> String {
        format!("{:?} {:?} {} {}\n", self.first, self.ending, self.up, self.down)
    }

    /// Plays one side to its end; an error says what that side saw instead.
    fn play(&self, me: Side, mut input: impl Read, stream: &TcpStream) -> Result<()> {
        let (mine, theirs) = if me == Side::Client { (self.up, self.down) } else { (self.down, self.up) };
        let mut out = stream;
        let first = me == self.first;
        if !first {
            receive(&mut input, theirs)?;
        }
        if !first && self.ending == Ending::Fin {
            ended(&mut input)?;
        }
        out.write_all(&pattern(mine)).context("send")?;
        match (self.ending, first) {
            (Ending::Fin, _) | (Ending::ResetHalfClosed, false) => stream.shutdown(Shutdown::Write).context("end")?,
            _ => {}
        }
        if first {
            receive(&mut input, theirs)?;
        }
        match (self.ending, first) {
            (Ending::Fin, false) => Ok(()),
            (Ending::Fin, true) => ended(&mut input),
            (Ending::Reset | Ending::ResetHalfClosed, false) => reset(&mut input),
            (Ending::ResetHalfClosed, true) => ended(&mut input).and_then(|()| abort(stream)),
            (Ending::Reset, true) => abort(stream),
        }
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Case> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [first, ending, up, down] = words[..] else { bail!("not a script: {line}") };
        let find = |case: &Case| format!("{:?}", case.first) == first && format!("{:?}", case.ending) == ending;
        let known = Case::all().into_iter().find(find).with_context(|| format!("unknown script: {line}"))?;
        Ok(Case { up: up.parse()?, down: down.parse()?, ..known })
    }
}

/// Bytes of which no two chunks of a power of two are alike, so that a lost, repeated or swapped one shows.
fn pattern(length: usize) -> Vec<u8> {
    const PERIOD: usize = 7 * 256;
    let mut bytes = (0..PERIOD).map(|i| (i * 31 / 7) as u8).collect::<Vec<u8>>().repeat(length.div_ceil(PERIOD));
    bytes.truncate(length);
    bytes
}

fn receive(input: &mut impl Read, length: usize) -> Result<()> {
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).context("receive")?;
    ensure!(bytes == pattern(length), "other bytes than were sent");
    Ok(())
}

/// The next thing to read is an orderly end.
fn ended(input: &mut impl Read) -> Result<()> {
    let more = input.read(&mut [0; 1]).context("an end was expected")?;
    ensure!(more == 0, "more bytes than were sent");
    Ok(())
}

/// The next thing to read is a reset.
fn reset(input: &mut impl Read) -> Result<()> {
    match input.read(&mut [0; 1]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(e).context("a reset was expected"),
        Ok(0) => bail!("an orderly end instead of a reset"),
        Ok(_) => bail!("more bytes than were sent"),
    }
}

fn abort(stream: &TcpStream) -> Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).context("ask for a reset")
}

fn prepare(stream: &TcpStream) -> Result<BufReader<TcpStream>> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream.try_clone()?))
}

/// What the server has seen so far.
#[derive(Default)]
struct Seen {
    open: u64,
    right: u64,
    wrong: Vec<String>,
}

/// `lab ends serve`: plays the server's side of whatever clients ask for.
pub fn serve(port: u16) -> Result<()> {
    let listener = listen(port, false)?;
    println!("ready");
    answer_all(&listener);
    Ok(())
}

fn answer_all(listener: &TcpListener) {
    let seen: Arc<Mutex<Seen>> = Arc::default();
    for stream in listener.incoming().filter_map(|s| s.ok()) {
        let seen = seen.clone();
        std::thread::spawn(move || answer(&stream, &seen));
    }
}

fn answer(stream: &TcpStream, seen: &Mutex<Seen>) -> Result<()> {
    let mut input = prepare(stream)?;
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(());
    }
    let locked = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    if line.starts_with("report") {
        let report = {
            let seen = locked();
            json!({"open": seen.open, "right": seen.right, "wrong": seen.wrong})
        };
        let mut out = stream;
        return Ok(out.write_all(format!("{report}\n").as_bytes())?);
    }
    locked().open += 1;
    let result = line.parse::<Case>().and_then(|case| case.play(Side::Server, input, stream));
    let mut seen = locked();
    seen.open -= 1;
    match result {
        Ok(()) => seen.right += 1,
        Err(e) => seen.wrong.push(format!("server: {}: {e:#}", line.trim())),
    }
    Ok(())
}

/// `lab ends play`: every case `rounds` times, or with `bytes` the orderly ends with so many in each direction; then what both ends saw
/// as one JSON line. Returns the exit code.
pub fn play(target: SocketAddr, rounds: u32, bytes: Option<usize>) -> Result<i32> {
    let cases = || bytes.map_or_else(Case::all, |bytes| Case::much(bytes).to_vec());
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in (0..rounds).flat_map(|_| cases()) {
        count += 1;
        let result = TcpStream::connect_timeout(&target, LIMIT).context("connect").and_then(|stream| {
            let input = prepare(&stream)?;
            let mut out = &stream;
            out.write_all(case.line().as_bytes()).context("send the script")?;
            case.play(Side::Client, input, &stream)
        });
        if let Err(e) = result {
            wrong.push(format!("client: {}: {e:#}", case.line().trim()));
        }
    }
    let server = settled(target, count)?;
    wrong.extend(server["wrong"].as_array().into_iter().flatten().filter_map(|w| w.as_str().map(String::from)));
    println!("{}", json!({"cases": count, "server": server["right"], "wrong": wrong}));
    Ok(i32::from(!wrong.is_empty() || server["right"] != count))
}

/// The server's report once it has seen the end of all `count` connections, or what it has seen when it should have.
fn settled(target: SocketAddr, count: u64) -> Result<serde_json::Value> {
    let start = Instant::now();
    loop {
        let stream = TcpStream::connect_timeout(&target, LIMIT).context("connect for the report")?;
        let (mut input, mut out) = (prepare(&stream)?, &stream);
        out.write_all(b"report\n").context("ask for the report")?;
        let mut line = String::new();
        input.read_line(&mut line).context("read the report")?;
        let report: serde_json::Value = serde_json::from_str(&line).context("report is JSON")?;
        let wrong = report["wrong"].as_array().map_or(0, Vec::len) as u64;
        if report["right"].as_u64().unwrap_or(0) + wrong >= count || start.elapsed() > LIMIT {
            return Ok(report);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_alone_plays_every_case_right() {
        for bytes in [None, Some(3_000_000)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = listener.local_addr().unwrap();
            std::thread::spawn(move || answer_all(&listener));
            assert_eq!(play(target, 1, bytes).unwrap(), 0);
        }
    }

    #[test]
    fn scripts_survive_the_wire() {
        for case in Case::all() {
            assert_eq!(case.line().parse::<Case>().unwrap().line(), case.line());
        }
        assert_eq!(Case::all().len(), 18 + 16);
    }
}
