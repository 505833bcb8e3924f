//! Targets about what rules compare: header matchers against a plain reference, and patterns of users within their limits.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::l7::{
    Authority, Client, Condition, HeaderMatch, Pattern, PatternError, Replacement, Request, Text, pattern,
};

/// What a pattern that is accepted may take, in bytes: far below it, or its limits do not hold.
const MOST: usize = 1 << 19;

/// Matchers, one a line, as `x-user exact jason`, `!x-user present`, `x-user regex j.*`; behind an empty line the headers of a request, as `x-user: jason`. They
/// must hold together just when each of them does for somebody who reads the lines one by one.
pub fn header_matches(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (matchers, lines) = text.split_once("\n\n").unwrap_or((&text, ""));
    let matchers: Vec<HeaderMatch> = matchers.lines().take(8).filter_map(matcher).collect();
    let mut headers = HeaderMap::new();
    let mut plain: Vec<(String, Vec<u8>)> = Vec::new();
    for line in lines.lines().take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let (Ok(known), Ok(read)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) else { continue };
        headers.append(known, read);
        plain.push((name.to_ascii_lowercase(), value.as_bytes().to_vec()));
    }
    let expected = matchers.iter().all(|one| holds(one, &plain));
    let Ok(authority) = Authority::parse("a.com") else { return };
    let condition = Condition { headers: matchers, ..Condition::default() };
    let request = Request {
        method: &Method::GET,
        scheme: "http",
        authority: &authority,
        path: "/",
        query: None,
        headers: &headers,
        port: 80,
        gateway: "mesh",
        service: None,
    };
    assert_eq!(condition.matches(&request, &Client::default()), expected, "{:?} of {plain:?}", condition.headers);
}

pub(super) fn matcher(line: &str) -> Option<HeaderMatch> {
    let (invert, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
    let mut words = line.splitn(3, ' ');
    let name = HeaderName::try_from(words.next()?).ok()?;
    let (kind, value) = (words.next()?, words.next().unwrap_or_default());
    Some(HeaderMatch { name, value: text(kind, value)?, invert })
}

pub(super) fn text(kind: &str, value: &str) -> Option<Text> {
    Some(match kind {
        "exact" => Text::Exact(value.into()),
        "prefix" => Text::Prefix(value.into()),
        "regex" => Text::Regex(Pattern::new(value).ok()?),
        "present" => Text::Present,
        _ => return None,
    })
}

/// By counting the lines that are meant.
fn holds(one: &HeaderMatch, lines: &[(String, Vec<u8>)]) -> bool {
    let mut count = 0;
    for (name, value) in lines {
        let is_meant = match &one.value {
            Text::Exact(text) => text.bytes().collect::<Vec<_>>() == *value,
            Text::Prefix(text) => value.len() >= text.len() && value[..text.len()] == *text.as_bytes(),
            Text::Regex(pattern) => pattern.matches(value),
            Text::Present => true,
        };
        count += usize::from(name == one.name.as_str() && is_meant);
    }
    if one.invert { count == 0 } else { count > 0 }
}

/// A pattern in one line, and behind it what it is held against. Whatever is accepted stays within its limits, means the same in parentheses, and puts back what
/// it takes out.
pub fn patterns(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (written, value) = text.split_once('\n').unwrap_or((&text, ""));
    let known = match Pattern::new(written) {
        Ok(known) => known,
        Err(why) => {
            assert_eq!(why == PatternError::Empty, written.is_empty(), "{why}");
            assert_eq!(matches!(why, PatternError::TooLong(_)), written.len() > pattern::LONGEST, "{why}");
            return;
        }
    };
    assert!(known.size() <= MOST, "{} bytes of {written:?}", known.size());
    let found = known.matches(value.as_bytes());
    for same in [format!("(?:{written})"), format!("(?:{written})|(?:{written})")] {
        if let Ok(same) = Pattern::new(same) {
            assert_eq!(same.matches(value.as_bytes()), found, "{same:?} of {value:?}");
        }
    }
    if let Ok(itself) = Replacement::new(written, r"\0") {
        assert!(itself.size() <= MOST, "{} bytes of {written:?}", itself.size());
        assert_eq!(itself.apply(value), value, "{itself:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn the_corpora_hold() {
        for (name, target) in [("header_matches", super::header_matches as fn(&[u8])), ("patterns", super::patterns)] {
            let folder = format!("{}/../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 6, "{name}: {} files", files.len());
            files.iter().for_each(|file| target(&fs::read(file).unwrap()));
        }
    }

    #[test]
    fn a_matcher_is_read_as_it_is_written() {
        let read = |line: &str| super::matcher(line).map(|one| format!("{} {:?} {}", one.name, one.value, one.invert));
        assert_eq!(read("!x-user exact a b").unwrap(), "x-user Exact(\"a b\") true");
        assert_eq!(read("X-User present").unwrap(), "x-user Present false");
        assert!(read("x-user regex (").is_none() && read("x user").is_none() && read("").is_none());
    }
}
