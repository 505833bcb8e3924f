//! What a document that cannot be parsed probably was: version, kind, namespace and name, from text that looks like them. `manifest::file` asks, so that
//! a broken security object is known to be there.

/// What could be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sniffed {
    /// `apiVersion`
    pub api_version: Option<String>,
    /// `kind`
    pub kind: Option<String>,
    /// `metadata.namespace`
    pub namespace: Option<String>,
    /// `metadata.name`
    pub name: Option<String>,
    /// `kind` or `apiVersion` is there more than once: it is more than one document.
    pub several: bool,
}

impl Sniffed {
    /// Takes a value that stands at `path`; the first one counts.
    fn take(&mut self, path: &[&str], value: &str) {
        if value.is_empty() {
            return;
        }
        let field = match path {
            ["apiVersion"] => &mut self.api_version,
            ["kind"] => &mut self.kind,
            ["metadata", "namespace"] => &mut self.namespace,
            ["metadata", "name"] => &mut self.name,
            _ => return,
        };
        match field {
            Some(_) => self.several |= path.len() == 1,
            None if !value.contains(char::is_whitespace) => *field = Some(value.to_owned()),
            None => {}
        }
    }
}

/// Looks at a document in either style.
pub fn sniff(text: &str) -> Sniffed {
    let mut out = Sniffed::default();
    if text.trim_start().starts_with('{') && !of_template(text) {
        flow(text, &[], &mut out);
    } else {
        block(text, &mut out);
    }
    out
}

/// A line of a template begins like a mapping in braces.
fn of_template(text: &str) -> bool {
    ["{{", "{%"].iter().any(|mark| text.trim_start().starts_with(mark))
}

/// Lines of `key: value`, by their indentation.
fn block(text: &str, out: &mut Sniffed) {
    let lines = text.lines().filter(|l| !matches!(l.trim_start().as_bytes(), [] | [b'#', ..] | [b'-', b'-', b'-', ..]));
    let lines = lines.filter(|l| !of_template(l));
    let mut outer = None;
    // Within `metadata`: the indentation of its fields, once one was seen.
    let mut inside: Option<Option<usize>> = None;
    for line in lines {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        let outer = *outer.get_or_insert(indent);
        let Some((key, value)) = entry(line) else { continue };
        if indent <= outer {
            inside = (key == "metadata").then_some(None);
            out.take(&[key], value);
            if key == "metadata" && value.starts_with('{') {
                flow(value, &["metadata"], out);
            }
        } else if let Some(first) = inside {
            let level = first.unwrap_or(indent);
            inside = Some(Some(level));
            if indent == level {
                out.take(&["metadata", key], value);
            }
        }
    }
}

/// `key: value` without quotes and comment.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let value = if value.trim_start().starts_with('#') { "" } else { value.split(" #").next().unwrap_or_default() };
    let quotes = ['"', '\''];
    Some((key.trim().trim_matches(quotes), value.trim().trim_matches(quotes)))
}

/// Mappings in braces, which is what JSON is: words and strings, with the keys that lead to each. `above` are the keys outside of `text`.
fn flow(text: &str, above: &[&str], out: &mut Sniffed) {
    const DEEPEST: usize = 64;
    let mut path: Vec<&str> = above.to_vec();
    let mut word = "";
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, tail) = match c {
            '"' | '\'' => match rest[1..].split_once(c) {
                Some((inside, tail)) => (inside, tail),
                None => return,
            },
            '{' | '}' | '[' | ']' | ',' | ':' => ("", &rest[1..]),
            _ if c.is_whitespace() => {
                rest = &rest[c.len_utf8()..];
                continue;
            }
            _ => rest.split_at(rest.find(['{', '}', '[', ']', ',', ':', '"', '\'', '\n']).unwrap_or(rest.len())),
        };
        match c {
            // The key takes the place of the one before it on its level.
            ':' => {
                path.pop();
                path.push(word);
            }
            '{' | '[' if path.len() >= DEEPEST => return,
            '{' | '[' => path.push(""),
            '}' | ']' | ',' => {
                out.take(&path, word.trim());
                if c != ',' {
                    path.pop();
                }
            }
            _ => {}
        }
        word = token;
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_document_still_says_what_it_was() {
        let cases = [
            (
                "kind: AuthorizationPolicy # x\nmetadata:\n  name: \"deny\"\n  namespace: shop\n  labels:\n    name: wrong\nspec: [\n",
                "AuthorizationPolicy shop deny",
            ),
            ("spec:\n  kind: Pod\n", "? ? ?"),
            ("kind: Pod\nmetadata: {name: a, namespace: b}\n\tx", "Pod b a"),
            ("metadata: # which\n  namespace: b # where\n  name : 'a'\n\"kind\": Pod\nspec: {", "Pod b a"),
            ("---\n  kind: Pod\n  metadata:\n    name: a\n  spec: [", "Pod ? a"),
            ("kind: Pod\r\nmetadata:\r\n  name: a\r\nspec: [\r\n", "Pod ? a"),
            ("kind: Pod\nmetadata:\n  ownerReferences:\n  - name: wrong\n  name: a\n", "Pod ? a"),
            (
                r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"name": "wrong"}, "name": "a", "namespace": "b"}, "spec": {"#,
                "Pod b a",
            ),
            (r#"{"spec": {"kind": "wrong"}, "items": [{"kind": "wrong"}], "kind": "Pod","#, "Pod ? ?"),
            ("{kind: Pod, metadata: {name: a}, spec: [}", "Pod ? a"),
            ("{\"kind", "? ? ?"),
            ("", "? ? ?"),
            ("\u{fffd}\nkind: Pod\n", "Pod ? ?"),
        ];
        for (text, expected) in cases {
            let Sniffed { kind, namespace, name, .. } = sniff(text);
            let shown = [kind, namespace, name].map(|f| f.unwrap_or_else(|| "?".into())).join(" ");
            assert_eq!(shown, expected, "{text}");
        }
        // Neither deep nor long text takes long or much.
        sniff(&"{[".repeat(1 << 20));
        sniff(&"a:".repeat(1 << 20));
    }
}
