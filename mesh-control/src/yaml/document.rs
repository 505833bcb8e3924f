//! From the bytes of a file to YAML documents: what no manifest may hold is refused with its line, and documents are cut apart by text, so
//! that a broken one does not take its neighbours along. `manifest::file` calls it.

use super::node::Span;

/// The largest file that is read.
pub const MAX_FILE_BYTES: u64 = 32 << 20;

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Its text.
    pub text: &'a str,
    /// Lines of the file before it.
    pub offset: u32,
}

/// Checks what holds for the file as a whole. The error carries the place.
pub fn text(bytes: &[u8]) -> Result<&str, (String, Span)> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(("the file is UTF-16, manifests are UTF-8".into(), Span { line: 1, column: 0, width: 0 }));
    }
    // A byte order mark is harmless at the beginning; editors of other systems write it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|e| ("the file is not UTF-8".to_owned(), place_of(&bytes[..e.valid_up_to()])))?;
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(("the file holds a NUL byte".into(), place_of(&bytes[..at])));
    }
    Ok(text)
}

fn place_of(before: &[u8]) -> Span {
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    let clip = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { line: clip(line), column: clip(column), width: 1 }
}

/// Cuts the text at lines that begin with `---`, as kubectl does. Documents of nothing but comments are left out.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut begin = 0;
    let mut offset = 0;
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        let separates = bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t");
        if separates {
            push(&mut documents, &text[begin..at], offset);
            // What stands behind the dashes belongs to the next document: keep it on its line.
            let rest_empty = bare[3..].trim_start().is_empty() || bare[3..].trim_start().starts_with('#');
            begin = if rest_empty { at + line.len() } else { at };
            offset = u32::try_from(number).unwrap_or(u32::MAX).saturating_add(u32::from(rest_empty));
        }
        at += line.len();
    }
    push(&mut documents, &text[begin..], offset);
    documents
}

fn push<'a>(documents: &mut Vec<Document<'a>>, text: &'a str, offset: u32) {
    let blank = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "..." || line.starts_with("%YAML")
    };
    if !text.lines().all(blank) {
        // Files that were joined bring the byte order mark of each of them.
        documents.push(Document { text: text.trim_start_matches('\u{feff}'), offset });
    }
}

/// A tab in indentation, which YAML forbids and editors hide.
pub fn tab(text: &str) -> Option<Span> {
    text.lines().zip(1..).find_map(|(line, number)| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let column = indent.find('\t')?;
        (!line.trim().is_empty()).then(|| Span {
            line: number,
            column: u32::try_from(column + 1).unwrap_or(1),
            width: 1,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_dashes() {
        let text = "# only a comment\n---\na: 1\n--- # two\nb: |\n  ---\n  x\n---\n---\n--- {c: 3}\n";
        let found: Vec<_> = split(text).iter().map(|d| (d.text, d.offset)).collect();
        assert_eq!(found, [("a: 1\n", 2), ("b: |\n  ---\n  x\n", 4), ("--- {c: 3}\n", 9)]);
    }

    #[test]
    fn hardening_B139_bytes_that_no_manifest_holds() {
        type Expected = Result<&'static str, (u32, u32)>;
        let cases: [(&[u8], Expected); 6] = [
            (b"\xef\xbb\xbfa: 1\n", Ok("a: 1\n")),
            (b"a: 1\nb: \xff\n", Err((2, 4))),
            (b"a: 1\n\nb: \0x\n", Err((3, 4))),
            (b"\xff\xfea\0", Err((1, 0))),
            (b"", Ok("")),
            ("ü: \u{1F600}\n".as_bytes(), Ok("ü: \u{1F600}\n")),
        ];
        for (bytes, expected) in cases {
            assert_eq!(text(bytes).map_err(|(_, s)| (s.line, s.column)), expected);
        }
    }
}
