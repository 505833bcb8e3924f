//! One spelling for each path, made before anything looks at it, and forwarded. What could mean one thing here and another to an application is refused.

use std::borrow::Cow;

use http::Method;

/// How much is made one. What comes after the question mark is never changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Spelling {
    /// RFC 3986: escapes that need not be are resolved, the others written in upper case, `.` and `..` worked off; and `\` is `/`. Istio's `BASE`, and
    /// its default.
    #[default]
    Base,
    /// Also `//` is `/`.
    MergeSlashes,
    /// Also `%2F` and `%5C` are `/`.
    DecodeAndMergeSlashes,
}

/// Why a path is refused; the answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathRefused {
    /// It does not begin with `/`, nor is it the `*` of OPTIONS.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A space, a control character or a `#`, as such.
    #[error("the path has a character that cannot stand in one")]
    Character,
    /// `%` without two digits of base 16.
    #[error("the path has an escape that is none")]
    Escape,
    /// An escaped control character, among them NUL.
    #[error("the path has an escaped control character")]
    Control,
    /// A character in an encoding that is too long for it, such as `%C0%AF` or `%E0%80%AF`.
    #[error("the path has an overlong encoding")]
    Overlong,
    /// `..` that only whoever resolves escaped slashes, or cuts off parameters, would see, such as `..%2F` and `..;`.
    #[error("the path has dots that applications read in different ways")]
    HiddenDots,
}

/// The one spelling of the target of a request: path and query. Borrowed if it is that already, which it mostly is.
pub fn normalise<'a>(method: &Method, target: &'a str, spelling: Spelling) -> Result<Cow<'a, str>, PathRefused> {
    if target == "*" && method == Method::OPTIONS {
        return Ok(Cow::Borrowed(target));
    }
    let mut end = target.len();
    for (at, byte) in target.bytes().enumerate() {
        match byte {
            b'?' => end = end.min(at),
            b' ' | b'#' => return Err(PathRefused::Character),
            _ if byte.is_ascii_control() => return Err(PathRefused::Character),
            _ => {}
        }
    }
    let (path, query) = target.split_at(end);
    if !path.starts_with(['/', '\\']) {
        return Err(PathRefused::NotAbsolute);
    }
    if is_plain(path, spelling) {
        return Ok(Cow::Borrowed(target));
    }
    let mut out = resolved(&decoded(path.as_bytes(), spelling)?, spelling)?;
    out.push_str(query);
    Ok(Cow::Owned(out))
}

/// What an application may make of a path that [`normalise`] gave: all that is ASCII without escapes, slashes too, `//` as `/`, and of each segment nothing that
/// comes after a `;`. Only for comparing: what denies a path denies it in this form, too. `None` if it is the same.
pub fn plainest(path: &str) -> Result<Option<String>, PathRefused> {
    if !path.contains(['%', ';']) && !path.contains("//") {
        return Ok(None);
    }
    let decoded = unescaped(path);
    let cut = decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    let out = resolved(&cut.collect::<Vec<_>>().join("/"), Spelling::MergeSlashes)?;
    Ok(Some(out).filter(|out| out != path))
}

/// Escapes of ASCII resolved, once; the others in upper case, and `\` as `/`. What is no escape stands for itself.
pub(super) fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    while let [first, tail @ ..] = rest {
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)).map(|(high, low)| (high * 16 + low) as u8),
            _ => None,
        };
        rest = if escape.is_some() { &tail[2..] } else { tail };
        match escape.unwrap_or(*first) {
            b'\\' => out.push('/'),
            byte if byte.is_ascii() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A text that paths are compared with, in the spelling that they have; as it is if it can be in none.
#[must_use]
pub fn respelled(text: &str) -> String {
    decoded(text.as_bytes(), Spelling::Base).unwrap_or_else(|_| text.to_owned())
}

/// Whether nothing of the path can have another spelling.
fn is_plain(path: &str, spelling: Spelling) -> bool {
    let mut last = 0;
    for byte in path.bytes() {
        let odd = match byte {
            b'%' | b'\\' | 0x80.. => true,
            b'.' => last == b'/',
            b'/' => last == b'/' && spelling != Spelling::Base,
            _ => false,
        };
        if odd {
            return false;
        }
        last = byte;
    }
    true
}

/// Escapes resolved where they need not be, in upper case elsewhere; what is no ASCII escaped.
fn decoded(path: &[u8], spelling: Spelling) -> Result<String, PathRefused> {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let escaped = |byte: u8| ['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])];
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16)).ok_or(PathRefused::Escape);
    let slashes = spelling == Spelling::DecodeAndMergeSlashes;
    let (mut out, mut rest, mut lead) = (String::with_capacity(path.len()), path, 0);
    while let [first, tail @ ..] = rest {
        let (byte, is_escape) = match first {
            b'%' => ((digit(tail.first())? * 16 + digit(tail.get(1))?) as u8, true),
            byte => (*byte, false),
        };
        rest = if is_escape { &tail[2..] } else { tail };
        if is_overlong(lead, byte) {
            return Err(PathRefused::Overlong);
        }
        lead = byte;
        match byte {
            b'/' | b'\\' if !is_escape || slashes => out.push('/'),
            _ if is_escape && byte.is_ascii_control() => return Err(PathRefused::Control),
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte if is_escape || !byte.is_ascii() => out.extend(escaped(byte)),
            byte => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

/// Whether two bytes begin what UTF-8 writes with fewer: in two, three or four bytes.
fn is_overlong(lead: u8, next: u8) -> bool {
    matches!((lead, next), (0xC0 | 0xC1, 0x80..=0xBF) | (0xE0, 0x80..=0x9F) | (0xF0, 0x80..=0x8F))
}

/// Without `.` and `..` segments, and if asked for without empty ones.
fn resolved(path: &str, spelling: Spelling) -> Result<String, PathRefused> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        // What dots leave behind is a folder: the path ends in a slash.
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ if hides_dots(segment) => return Err(PathRefused::HiddenDots),
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    let merge = spelling != Spelling::Base;
    for (index, segment) in kept.iter().enumerate() {
        if !merge || !segment.is_empty() || index + 1 == kept.len() {
            out.push('/');
            out.push_str(segment);
        }
    }
    Ok(if out.is_empty() { "/".to_owned() } else { out })
}

/// Whether some part of the segment is `.` or `..` to somebody else.
fn hides_dots(segment: &str) -> bool {
    let mut parts = segment.split("%2F").flat_map(|part| part.split("%5C"));
    parts.any(|part| {
        let name = part.split("%3B").next().unwrap_or_default().split(';').next().unwrap_or_default();
        name == "." || name == ".."
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(target: &str, spelling: Spelling) -> Result<String, PathRefused> {
        normalise(&Method::GET, target, spelling).map(Cow::into_owned)
    }

    #[test]
    fn hardening_B159_one_spelling_or_none() {
        use PathRefused::{Character, Control, Escape, HiddenDots, NotAbsolute, Overlong};
        for (target, base, merged, all) in [
            ("/", Ok("/"), Ok("/"), Ok("/")),
            ("/admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/Admin/", Ok("/Admin/"), Ok("/Admin/"), Ok("/Admin/")),
            ("/admin?a/../b//%zz", Ok("/admin?a/../b//%zz"), Ok("/admin?a/../b//%zz"), Ok("/admin?a/../b//%zz")),
            ("//admin", Ok("//admin"), Ok("/admin"), Ok("/admin")),
            ("/a//b///", Ok("/a//b///"), Ok("/a/b/"), Ok("/a/b/")),
            ("/a/../admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/a/./admin/.", Ok("/a/admin/"), Ok("/a/admin/"), Ok("/a/admin/")),
            ("/a/b/..", Ok("/a/"), Ok("/a/"), Ok("/a/")),
            ("/..", Ok("/"), Ok("/"), Ok("/")),
            ("/../../admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/a//../b", Ok("/a/b"), Ok("/a/b"), Ok("/a/b")),
            ("/%2e%2e/admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/a/%2E./admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/a\\..\\admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("\\admin", Ok("/admin"), Ok("/admin"), Ok("/admin")),
            ("/%61dmin%7e%2d%5f", Ok("/admin~-_"), Ok("/admin~-_"), Ok("/admin~-_")),
            ("/a%2fadmin", Ok("/a%2Fadmin"), Ok("/a%2Fadmin"), Ok("/a/admin")),
            ("/a%5cadmin", Ok("/a%5Cadmin"), Ok("/a%5Cadmin"), Ok("/a/admin")),
            ("/a%2f%2Fadmin", Ok("/a%2F%2Fadmin"), Ok("/a%2F%2Fadmin"), Ok("/a/admin")),
            ("/a%2f..%2fadmin", Err(HiddenDots), Err(HiddenDots), Ok("/admin")),
            ("/a/..%5Cadmin", Err(HiddenDots), Err(HiddenDots), Ok("/admin")),
            ("/%252e%252e/%252f", Ok("/%252e%252e/%252f"), Ok("/%252e%252e/%252f"), Ok("/%252e%252e/%252f")),
            ("/admin;x", Ok("/admin;x"), Ok("/admin;x"), Ok("/admin;x")),
            ("/a/..;/admin", Err(HiddenDots), Err(HiddenDots), Err(HiddenDots)),
            ("/a/.;x/admin", Err(HiddenDots), Err(HiddenDots), Err(HiddenDots)),
            ("/a/..%3bx/admin", Err(HiddenDots), Err(HiddenDots), Err(HiddenDots)),
            ("/a/...", Ok("/a/..."), Ok("/a/..."), Ok("/a/...")),
            ("/a/.b/..c", Ok("/a/.b/..c"), Ok("/a/.b/..c"), Ok("/a/.b/..c")),
            ("/admin%00", Err(Control), Err(Control), Err(Control)),
            ("/admin%0d%0a", Err(Control), Err(Control), Err(Control)),
            ("/admin%7F", Err(Control), Err(Control), Err(Control)),
            ("/%c0%afadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%C1%9cadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%E0%80%AFadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%e0%9f%bfadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%F0%80%80%AFadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%f0%8f%bf%bfadmin", Err(Overlong), Err(Overlong), Err(Overlong)),
            ("/%E0%A0%80", Ok("/%E0%A0%80"), Ok("/%E0%A0%80"), Ok("/%E0%A0%80")),
            ("/%F0%90%80%80", Ok("/%F0%90%80%80"), Ok("/%F0%90%80%80"), Ok("/%F0%90%80%80")),
            ("/%C3%a4/ä", Ok("/%C3%A4/%C3%A4"), Ok("/%C3%A4/%C3%A4"), Ok("/%C3%A4/%C3%A4")),
            ("/%u002fadmin", Err(Escape), Err(Escape), Err(Escape)),
            ("/admin%", Err(Escape), Err(Escape), Err(Escape)),
            ("/admin%2", Err(Escape), Err(Escape), Err(Escape)),
            ("/admin%+1", Err(Escape), Err(Escape), Err(Escape)),
            ("/admin#x", Err(Character), Err(Character), Err(Character)),
            ("/admin?x#y", Err(Character), Err(Character), Err(Character)),
            ("/a b", Err(Character), Err(Character), Err(Character)),
            ("/a\tb", Err(Character), Err(Character), Err(Character)),
            ("/a\r\nb", Err(Character), Err(Character), Err(Character)),
            ("admin", Err(NotAbsolute), Err(NotAbsolute), Err(NotAbsolute)),
            ("", Err(NotAbsolute), Err(NotAbsolute), Err(NotAbsolute)),
            ("?a", Err(NotAbsolute), Err(NotAbsolute), Err(NotAbsolute)),
            ("*", Err(NotAbsolute), Err(NotAbsolute), Err(NotAbsolute)),
            ("%2fadmin", Err(NotAbsolute), Err(NotAbsolute), Err(NotAbsolute)),
        ] {
            let modes = [Spelling::Base, Spelling::MergeSlashes, Spelling::DecodeAndMergeSlashes];
            for (spelling, expected) in modes.into_iter().zip([base, merged, all]) {
                assert_eq!(one(target, spelling), expected.map(str::to_owned), "{target:?} {spelling:?}");
            }
        }
        let star = |method| normalise(&method, "*", Spelling::Base);
        assert_eq!((star(Method::OPTIONS), star(Method::GET)), (Ok("*".into()), Err(NotAbsolute)));
    }

    #[test]
    fn what_applications_may_make_of_a_path_is_known() {
        for (path, expected) in [
            ("/admin", None),
            ("/a/b.c-d", None),
            ("/a%2Fadmin", Some("/a/admin")),
            ("/a%5Cadmin", Some("/a/admin")),
            ("//admin", Some("/admin")),
            ("/%2F%2Fadmin", Some("/admin")),
            ("/admin;x=1/b;y", Some("/admin/b")),
            ("/admin%3Bx/b", Some("/admin/b")),
            ("/%24metadata", Some("/$metadata")),
            ("/a%20b%3F", Some("/a b?")),
            ("/%2541", Some("/%41")),
            ("/%252Fadmin", Some("/%2Fadmin")),
            ("/%C3%A4", None),
            ("/admin/", None),
            ("/admin//", Some("/admin/")),
        ] {
            assert_eq!(plainest(path), Ok(expected.map(str::to_owned)), "{path}");
        }
        assert_eq!(respelled("/%61%2fä\\b"), "/a%2F%C3%A4/b");
        assert_eq!(respelled("/100%"), "/100%");
    }

    #[test]
    fn a_usual_path_is_not_copied() {
        for target in ["/", "/api/v1/products/7?x=%2f..", "/a.b/c-d_e~f", "/$metadata", "/a:b;c=d,e@f!(g)*"] {
            let kept = normalise(&Method::GET, target, Spelling::MergeSlashes);
            assert!(matches!(kept, Ok(Cow::Borrowed(_))), "{target}");
        }
    }

    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "\\", ".", "..", "a", "B", "%2e", "%2E", "%2f", "%5C", "%61", ";", "%3b", "%25", "2e", "%C0", "%af",
            "%00", "é", "~", "%7E",
        ]);
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn once_is_enough_and_leaves_no_dots(target in pieces(), spelling in 0..3_usize) {
            let spelling = [Spelling::Base, Spelling::MergeSlashes, Spelling::DecodeAndMergeSlashes][spelling];
            if let Ok(path) = one(&target, spelling) {
                prop_assert_eq!(one(&path, spelling), Ok(path.clone()));
                let as_others_read_it = path.replace("%2F", "/").replace("%5C", "/");
                for segment in as_others_read_it.split('/') {
                    prop_assert!(segment.split(';').next() != Some("..") && segment != ".", "{}", path);
                }
                prop_assert!(path.is_ascii() && path.starts_with('/') && !path.contains('\\'));
                if spelling != Spelling::Base {
                    prop_assert!(!path.contains("//"), "{}", path);
                }
            }
        }

        #[test]
        fn spellings_of_one_path_are_one(target in pieces(), choice in any::<u64>()) {
            // Each letter and dot may stand as itself or as its escape, in either case.
            let mut spelt = String::new();
            let mut after_percent = 0;
            for (index, c) in target.chars().enumerate() {
                after_percent = if c == '%' { 3 } else { after_percent - i32::from(after_percent > 0) };
                let free = after_percent == 0 && (c.is_ascii_alphanumeric() || c == '.' || c == '~');
                match (free, choice >> (index % 64) & 1) {
                    (true, 1) => spelt.push_str(&format!("%{:02x}", u32::from(c))),
                    _ => spelt.push(c),
                }
            }
            prop_assert_eq!(one(&target, Spelling::Base), one(&spelt, Spelling::Base));
        }
    }
}
