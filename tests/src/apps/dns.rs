//! `lab dns`: the cluster's DNS server, over UDP and TCP, from a text file of records (`name address...`), read afresh when it
//! changes. Knows nothing of the mesh: what it answers is what a cluster answers.
use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Serves forever.
pub fn run(listen: SocketAddr, records: PathBuf) -> Result<()> {
    let udp = UdpSocket::bind(listen).with_context(|| format!("bind udp {listen}"))?;
    let tcp = TcpListener::bind(listen).with_context(|| format!("bind tcp {listen}"))?;
    println!("ready");
    let file = records.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming().filter_map(|s| s.ok()) {
            let file = file.clone();
            std::thread::spawn(move || serve_stream(stream, &file));
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (n, from) = udp.recv_from(&mut buffer).context("receive query")?;
        if let Some(answer) = answer(&buffer[..n], &records) {
            let _ = udp.send_to(&answer, from);
        }
    }
}

/// Sends `count` queries for `name` to the first nameserver of this pod without waiting for answers, and prints what came of it.
pub fn flood(name: &str, count: u32) -> Result<()> {
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").context("read resolv.conf")?;
    let server = resolvers.lines().find_map(|line| line.strip_prefix("nameserver ")).context("no nameserver")?;
    let server: IpAddr = server.trim().parse().context("nameserver")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.connect((server, 53)).context("connect")?;
    socket.set_nonblocking(true).context("non-blocking")?;
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).context("name")?, RecordType::A));
    let mut query = query.to_vec().context("encode query")?;
    println!("started");
    let (start, mut sent, mut answered, mut buffer) = (Instant::now(), 0_u32, 0_u32, [0; 512]);
    while sent < count {
        query[..2].copy_from_slice(&(sent as u16).to_be_bytes());
        match socket.send(&query) {
            Ok(_) => sent += 1,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(e) => return Err(e).context("send query"),
        }
        while socket.recv(&mut buffer).is_ok() {
            answered += 1;
        }
    }
    println!("{}", serde_json::json!({ "sent": sent, "answered": answered, "ms": start.elapsed().as_millis() as u64 }));
    Ok(())
}

fn serve_stream(mut stream: std::net::TcpStream, records: &Path) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some(answer) = answer(&query, records) else { return };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}

fn load(records: &Path) -> HashMap<String, Vec<IpAddr>> {
    let text = std::fs::read_to_string(records).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_ascii_lowercase();
            Some((name, words.filter_map(|w| w.parse().ok()).collect()))
        })
        .collect()
}

fn answer(query: &[u8], records: &Path) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    let question = query.queries.first()?.clone();
    response.add_query(question.clone());
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match load(records).get(&name) {
        None => {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        Some(addresses) => {
            for address in addresses {
                let data = match (address, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => RData::A(A(*ip)),
                    (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
                    _ => continue,
                };
                response.add_answer(Record::from_rdata(question.name().clone(), 5, data));
            }
        }
    }
    response.to_vec().ok()
}
