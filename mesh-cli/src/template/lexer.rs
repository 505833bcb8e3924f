//! From the text of a template to pieces: text as it is, and actions as tokens, with the white space trimmed that `{{-` and `-}}` ask for.
//! Called by `parser`.

/// A part of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Copied as it is.
    Text(String),
    /// What stood between `{{` and `}}`.
    Action {
        /// Line of its beginning, from 1.
        line: usize,
        /// Its words.
        tokens: Vec<Lexeme>,
    },
}

/// A token, and whether it stands right behind the one before: `.a.b` is one operand, `.a .b` are two.
#[derive(Clone, Debug, PartialEq)]
pub struct Lexeme {
    /// What it is.
    pub token: Token,
    /// No white space before it.
    pub is_glued: bool,
}

/// The smallest parts of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A keyword or the name of a function.
    Word(String),
    /// `.name`.
    Field(String),
    /// `.` alone.
    Dot,
    /// `$name`, or `$` with an empty name.
    Variable(String),
    /// A string in any of Go's quotes.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// `|`.
    Pipe,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `,`.
    Comma,
    /// `:=`.
    Declare,
    /// `=`.
    Assign,
}

const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts a template. The error is a line and what is wrong there.
pub fn lex(text: &str) -> Result<Vec<Piece>, (usize, String)> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trims = false;
    let line_of = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() + 1;
    while let Some(at) = rest.find("{{") {
        let line = line_of(&rest[at..]);
        let fail = |message: String| (line, message);
        let inner = &rest[at + 2..];
        let is_trimming = inner.starts_with('-') && inner[1..].starts_with(BLANK);
        push_text(&mut pieces, &rest[..at], trims, is_trimming);
        let inner = if is_trimming { &inner[1..] } else { inner };
        (rest, trims) = match inner.trim_start_matches(BLANK).strip_prefix("/*") {
            Some(comment) => {
                let end = comment.find("*/").ok_or_else(|| fail("the comment has no end".into()))?;
                close(&comment[end + 2..]).ok_or_else(|| fail("a comment ends with */}} or */ -}}".into()))?
            }
            None => {
                let mut tokens = Vec::new();
                let rest = action(inner, &mut tokens).map_err(fail)?;
                pieces.push(Piece::Action { line, tokens });
                rest
            }
        };
    }
    push_text(&mut pieces, rest, trims, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let text = if trim_start { text.trim_start_matches(BLANK) } else { text };
    let text = if trim_end { text.trim_end_matches(BLANK) } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// What follows the end of an action, if this is one, and whether it trims.
fn close(text: &str) -> Option<(&str, bool)> {
    if let Some(rest) = text.strip_prefix("}}") {
        return Some((rest, false));
    }
    let inner = text.trim_start_matches(BLANK);
    let is_trimming = inner.len() < text.len() && inner.starts_with("-}}");
    is_trimming.then(|| (&inner[3..], true))
}

/// Reads tokens up to the end of the action; returns what follows it and whether that is trimmed.
fn action<'a>(text: &'a str, tokens: &mut Vec<Lexeme>) -> Result<(&'a str, bool), String> {
    let mut rest = text;
    loop {
        if let Some(end) = close(rest) {
            return Ok(end);
        }
        let bare = rest.trim_start_matches(BLANK);
        if let Some(end) = close(bare) {
            return Ok(end);
        }
        let is_glued = bare.len() == rest.len() && !tokens.is_empty();
        let (token, after) = token(bare)?;
        tokens.push(Lexeme { token, is_glued });
        rest = after;
    }
}

fn token(text: &str) -> Result<(Token, &str), String> {
    let Some(first) = text.chars().next() else { return Err("the action has no end".into()) };
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let word = |text: &str| text.find(|c| !is_word(c)).unwrap_or(text.len());
    let simple = |token, length| Ok((token, &text[length..]));
    match first {
        '|' => simple(Token::Pipe, 1),
        '(' => simple(Token::Open, 1),
        ')' => simple(Token::Close, 1),
        ',' => simple(Token::Comma, 1),
        ':' if text.starts_with(":=") => simple(Token::Declare, 2),
        '=' => simple(Token::Assign, 1),
        '"' => quoted(text),
        '`' => {
            let end = text[1..].find('`').ok_or("the string has no end")?;
            simple(Token::Text(text[1..=end].to_owned()), end + 2)
        }
        '.' if !text[1..].starts_with(|c: char| c.is_ascii_digit()) => match word(&text[1..]) {
            0 => simple(Token::Dot, 1),
            length => simple(Token::Field(text[1..=length].to_owned()), length + 1),
        },
        '$' => {
            let length = word(&text[1..]);
            simple(Token::Variable(text[1..=length].to_owned()), length + 1)
        }
        '0'..='9' | '-' | '+' | '.' => number(text),
        c if is_word(c) => {
            let length = word(text);
            simple(Token::Word(text[..length].to_owned()), length)
        }
        c => Err(format!("unexpected {c:?}")),
    }
}

fn number(text: &str) -> Result<(Token, &str), String> {
    let length = text.find(|c: char| !(c.is_ascii_alphanumeric() || ".+-_".contains(c))).unwrap_or(text.len());
    let (word, rest) = text.split_at(length);
    if let Ok(value) = word.parse() {
        return Ok((Token::Int(value), rest));
    }
    word.parse().map(|value| (Token::Float(value), rest)).map_err(|_| format!("{word:?} is not a number"))
}

/// A string with Go's escapes, of which charts use these.
fn quoted(text: &str) -> Result<(Token, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Text(value), &text[at + 1..])),
            '\n' => break,
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some(c @ ('"' | '\\')) => value.push(c),
                other => return Err(format!("unknown escape \\{}", other.map(String::from).unwrap_or_default())),
            },
            c => value.push(c),
        }
    }
    Err("the string has no end".into())
}
