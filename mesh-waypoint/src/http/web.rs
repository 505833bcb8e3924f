//! gRPC-Web, what browsers speak for gRPC, by its description "gRPC Web": the same messages under another media type, with the trailers as a last message, and all
//! of it in base64 for who asks for text. Used by the exchange, which makes gRPC of it for endpoints whose port says that they speak that, and by bodies.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE};
use http::{HeaderMap, HeaderName};
use hyper::body::Frame;

/// Its media type; `-text`, a subtype or parameters may follow.
const TYPE: &str = "application/grpc-web";
const TEXT: &str = "-text";
const GRPC: &str = "application/grpc";
/// What is said of messages when nobody says more.
const PROTO: &str = "+proto";
/// The first byte of the message that trailers are.
const TRAILERS: u8 = 0x80;
/// So many letters of base64 are three bytes.
const GROUP: usize = 4;
/// By this clients say that they speak it, too.
const SPOKEN: HeaderName = HeaderName::from_static("x-grpc-web");

/// How a client speaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Web {
    /// Its messages are in base64.
    asks_in_text: bool,
    /// The answer's are to be.
    takes_text: bool,
}

impl Web {
    /// How a request with these fields, which has that type, speaks it, if it does.
    pub fn of(content_type: &[u8], headers: &HeaderMap) -> Option<Self> {
        let asks_in_text = is_text(content_type)?;
        let mut accepted =
            headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        // Who says nothing of it takes what he speaks.
        let takes_text = accepted.find_map(|one| is_text(one.trim_ascii())).unwrap_or(asks_in_text);
        Some(Self { asks_in_text, takes_text })
    }

    /// Makes the fields of a request those of gRPC.
    pub fn request(self, headers: &mut HeaderMap) {
        retype(headers, GRPC);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.remove(SPOKEN);
        if self.asks_in_text {
            headers.remove(CONTENT_LENGTH);
        }
    }

    /// What its body has to go through, if anything.
    pub fn decoder(self) -> Option<Decoder> {
        self.asks_in_text.then(Decoder::default)
    }

    /// Makes the fields of an answer of gRPC the client's.
    pub fn answer(self, headers: &mut HeaderMap) {
        retype(headers, if self.takes_text { "application/grpc-web-text" } else { TYPE });
        headers.remove(CONTENT_LENGTH);
    }

    /// Makes of a part of an answer what the client takes.
    pub fn frame(self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => last(&trailers),
                Err(frame) => return frame,
            },
        };
        Frame::data(if self.takes_text { BASE64_STANDARD.encode(&data).into() } else { data })
    }
}

/// Whether this type is the one of text; nothing if it is none of gRPC-Web.
fn is_text(value: &[u8]) -> Option<bool> {
    let rest = after(value, TYPE)?;
    let (is_text, rest) = after(rest, TEXT).map_or((false, rest), |rest| (true, rest));
    matches!(rest.first(), None | Some(b'+' | b';' | b' ')).then_some(is_text)
}

fn after<'a>(value: &'a [u8], start: &str) -> Option<&'a [u8]> {
    let (own, rest) = value.split_at_checked(start.len())?;
    own.eq_ignore_ascii_case(start.as_bytes()).then_some(rest)
}

/// Another type with the same subtype and parameters.
fn retype(headers: &mut HeaderMap, to: &str) {
    let said = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let own = after(said, TYPE).map(|rest| after(rest, TEXT).unwrap_or(rest)).or_else(|| after(said, GRPC));
    let own = own.filter(|rest| !rest.is_empty()).unwrap_or(PROTO.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&[to.as_bytes(), own].concat()) {
        headers.insert(CONTENT_TYPE, value);
    }
}

/// The last message: trailers as lines of HTTP/1.1.
fn last(trailers: &HeaderMap) -> Bytes {
    let lines: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 3).sum();
    let mut message = BytesMut::with_capacity(5 + lines);
    message.extend_from_slice(&[TRAILERS]);
    message.extend_from_slice(&u32::try_from(lines).unwrap_or(u32::MAX).to_be_bytes());
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\r\n"] {
            message.extend_from_slice(part);
        }
    }
    message.freeze()
}

/// Reads base64 as it comes: pieces may end anywhere, and what a client has ended with `=` may go on.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Letters that are not yet a group.
    rest: Vec<u8>,
}

/// It is no base64.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not base64, as its type says")]
pub struct NoText;

impl Decoder {
    /// What the next piece says, as far as that is known.
    pub fn read(&mut self, piece: &[u8]) -> Result<Bytes, NoText> {
        let mut text = std::mem::take(&mut self.rest);
        text.extend_from_slice(piece);
        self.rest = text.split_off(text.len() / GROUP * GROUP);
        let mut bytes = Vec::with_capacity(text.len() / GROUP * 3);
        let mut groups = &*text;
        while !groups.is_empty() {
            let padded = groups.chunks_exact(GROUP).position(|group| group.ends_with(b"="));
            let (one, others) = groups.split_at(padded.map_or(groups.len(), |at| (at + 1) * GROUP));
            BASE64_STANDARD.decode_vec(one, &mut bytes).map_err(|_| NoText)?;
            groups = others;
        }
        Ok(bytes.into())
    }

    /// It is over; is it whole?
    pub fn end(&self) -> Result<(), NoText> {
        if self.rest.is_empty() { Ok(()) } else { Err(NoText) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn features_GW_2_what_is_grpc_web_says_so_and_how_it_is_to_be_answered() {
        let web = |asks_in_text, takes_text| Some(Web { asks_in_text, takes_text });
        for (content_type, accept, expected) in [
            ("application/grpc-web", &[][..], web(false, false)),
            ("Application/gRPC-Web+proto", &["*/*"], web(false, false)),
            ("application/grpc-web; charset=utf-8", &[], web(false, false)),
            ("application/grpc-web-text", &[], web(true, true)),
            ("application/grpc-web-text+proto", &["text/html, application/grpc-web-text"], web(true, true)),
            ("application/grpc-web+proto", &["application/grpc-web-text"], web(false, true)),
            ("application/grpc-web-text", &["text/html", "application/grpc-web+proto"], web(true, false)),
            ("application/grpc", &["application/grpc-web"], None),
            ("application/grpc-website", &[], None),
            ("application/grpc-web-textual", &[], None),
            ("", &[], None),
        ] {
            let accept: Vec<_> = accept.iter().map(|value| (ACCEPT, *value)).collect();
            assert_eq!(Web::of(content_type.as_bytes(), &headers(&accept)), expected, "{content_type} {accept:?}");
        }
    }

    #[test]
    fn features_GW_2_fields_become_those_of_grpc_and_back() {
        let text = Web { asks_in_text: true, takes_text: true };
        let binary = Web { asks_in_text: false, takes_text: false };
        for (web, said, to, back) in [
            (binary, "application/grpc-web", "application/grpc+proto", "application/grpc-web+proto"),
            (binary, "application/grpc-web+json", "application/grpc+json", "application/grpc-web+json"),
            (text, "application/grpc-web-text+proto", "application/grpc+proto", "application/grpc-web-text+proto"),
            (text, "application/grpc-web-text;a=b", "application/grpc;a=b", "application/grpc-web-text;a=b"),
        ] {
            let mut map = headers(&[(CONTENT_TYPE, said), (CONTENT_LENGTH, "8"), (SPOKEN, "1")]);
            web.request(&mut map);
            assert!(map[CONTENT_TYPE] == to && map[TE] == "trailers", "{said}: {map:?}");
            assert_eq!((map.contains_key(CONTENT_LENGTH), map.contains_key(SPOKEN)), (web == binary, false), "{said}");
            web.answer(&mut map);
            assert!(map[CONTENT_TYPE] == back && !map.contains_key(CONTENT_LENGTH), "{said}: {map:?}");
        }
        // An answer need not say its type.
        let mut silent = HeaderMap::new();
        binary.answer(&mut silent);
        assert_eq!(silent[CONTENT_TYPE], "application/grpc-web+proto");
    }

    #[test]
    fn features_GW_2_trailers_are_the_last_message() {
        let trailers =
            || Frame::trailers(headers(&[(super::super::grpc::STATUS, "5"), (HeaderName::from_static("a"), "b c")]));
        let lines = b"\x80\0\0\0\x16grpc-status:5\r\na:b c\r\n";
        let sent = |takes_text, frame| Web { asks_in_text: false, takes_text }.frame(frame).into_data().unwrap();
        assert_eq!(&sent(false, trailers())[..], lines);
        assert_eq!(sent(true, trailers()), BASE64_STANDARD.encode(lines));
        let message = || Frame::data(Bytes::from_static(b"\0\0\0\0\x01x"));
        assert_eq!(&sent(false, message())[..], b"\0\0\0\0\x01x");
        assert_eq!(&sent(true, message())[..], b"AAAAAAF4");
        assert_eq!(&sent(false, Frame::trailers(HeaderMap::new()))[..], b"\x80\0\0\0\0");
    }

    #[test]
    fn features_GW_2_text_is_read_however_it_comes() {
        let whole: &[u8] = b"AAAAAAF4AAAAAAA=AAAAAAF5eg==AAAA";
        let expected = b"\0\0\0\0\x01x\0\0\0\0\0\0\0\0\0\x01yz\0\0\0";
        for size in 1..=whole.len() {
            let mut decoder = Decoder::default();
            let read: Vec<u8> = whole.chunks(size).flat_map(|piece| decoder.read(piece).unwrap()).collect();
            assert_eq!((&read[..], decoder.end()), (&expected[..], Ok(())), "{size}");
        }
        for bad in ["AA=A", "====", "AA*A", "A===", "AA\r\n", "AB=="] {
            assert_eq!(Decoder::default().read(bad.as_bytes()), Err(NoText), "{bad}");
        }
        let mut cut = Decoder::default();
        assert_eq!((cut.read(b"AAAAAAF"), cut.end()), (Ok(Bytes::from_static(b"\0\0\0")), Err(NoText)));
    }
}
