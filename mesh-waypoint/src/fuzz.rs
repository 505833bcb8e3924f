//! Entry points for fuzzers. Each takes arbitrary bytes and panics only on a bug.
#![doc(hidden)]

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::l7::path::{Spelling, normalise};
use mesh_runtime::Drain;

use crate::exchange;
use crate::http::guard::Guard;
use crate::http::serve::{Serve, serve};
use crate::http::sniff::Spoken;
use crate::http::{Fields, ResponseBody, hop};
use crate::settings::Settings;

/// What a client of HTTP/1.1 sends in one connection: hyper must see no request that the guard does not see too, and at the same place.
pub fn http1_request(data: &[u8]) {
    let heads = heads(data);
    let requests = requests(data);
    assert!(requests.len() <= heads.len(), "{} requests of {} heads", requests.len(), heads.len());
    for ((method, uri), (method_at, target_at)) in requests.iter().zip(&heads) {
        assert_eq!(method.as_str().as_bytes(), *method_at, "the place of a request");
        if target_at.starts_with(b"/") {
            assert_eq!(uri.path_and_query().map(|target| target.as_str().as_bytes()), Some(*target_at), "its target");
        }
    }
}

/// The first two words of each request that the guard sees.
fn heads(data: &[u8]) -> Vec<(&[u8], &[u8])> {
    let (mut guard, mut heads) = (Guard::default(), Vec::new());
    for (at, byte) in data.iter().enumerate() {
        let begins = guard.is_between() && *byte != b'\r' && *byte != b'\n';
        if begins {
            let mut words = data[at..].split(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
            heads.push((words.next().unwrap_or_default(), words.next().unwrap_or_default()));
        }
        if guard.look(std::slice::from_ref(byte)).is_err() {
            // A head that is refused is none.
            if guard.is_in_head() {
                heads.pop();
            }
            break;
        }
    }
    heads
}

/// The requests that come through.
fn requests(data: &[u8]) -> Vec<(Method, Uri)> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return Vec::new() };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handle = {
        let seen = Arc::clone(&seen);
        move |request: Request<Incoming>| {
            let seen = Arc::clone(&seen);
            async move {
                let (mut parts, body) = request.into_parts();
                let asked = (parts.method.clone(), parts.uri.clone());
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
                let settings = Settings::default();
                let read = exchange::fuzz_read(&mut parts, &settings);
                if read.is_ok() {
                    check(&mut parts);
                }
                let closes = read.unwrap_or(true);
                let _ = body.collect().await;
                let mut response = Response::new(ResponseBody::whole(bytes::Bytes::new()));
                if closes {
                    response.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        }
    };
    let stream = tokio::io::join(Cursor::new(data.to_vec()), tokio::io::sink());
    let (settings, drain) = (Settings::default(), Drain::new());
    let (watch, spare) = Default::default();
    let serving = Serve {
        settings: &settings,
        watch,
        drain: &drain.token(),
        spare: &spare,
        of_proxy: false,
        silent: settings.idle_timeout,
    };
    let _ = runtime.block_on(serve(serving, Spoken::Http1, stream, bytes::Bytes::new(), handle));
    std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What is true of every request that goes on.
fn check(parts: &mut http::request::Parts) {
    let target = parts.uri.to_string();
    let again = normalise(&parts.method, &target, Spelling::Base);
    assert_eq!(again.as_deref(), Ok(&*target), "one spelling of a path");
    let (mut headers, has) = (parts.headers.clone(), Fields::of(&parts.headers));
    assert_eq!(hop::strip(&mut headers, has), hop::Said::default(), "nothing of the client's connection is left");
    assert_eq!(headers.len(), parts.headers.len());
    assert!(parts.headers.get("host").is_none());
    assert!(parts.headers.get_all("content-length").iter().count() <= 1);
}

#[cfg(test)]
mod tests {
    /// Replays what fuzzing started from and found, and each of its prefixes and single-byte changes.
    #[test]
    fn http1_request_corpus() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/http1_request");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            super::http1_request(&data);
            for end in 0..data.len() {
                super::http1_request(&data[..end]);
                for bit in [0x81, 0x20, 0x01] {
                    let mut changed = data.clone();
                    changed[end] ^= bit;
                    super::http1_request(&changed);
                }
                for inserted in [b'\r', b'\n', b' ', b':', b'0'] {
                    let mut changed = data.clone();
                    changed.insert(end, inserted);
                    super::http1_request(&changed);
                }
            }
            count += 1;
        }
        assert!(count >= 10, "{folder} has {count} files");
    }
}
