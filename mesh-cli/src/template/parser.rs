//! From pieces to a tree. Called by `eval` when templates are added; definitions are taken out and stand beside the tree.

use super::lexer::{Lexeme, Piece, Token, lex};

/// Something that a template does.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Writes text.
    Text(String),
    /// Runs a pipeline and writes its value, unless that went into variables.
    Action(Pipeline),
    /// `if` and `with`.
    Branch {
        /// The value becomes the dot.
        is_with: bool,
        /// What is asked.
        condition: Pipeline,
        /// If so.
        body: Vec<Node>,
        /// Else.
        otherwise: Vec<Node>,
    },
    /// `range`.
    Range {
        /// Over what.
        over: Pipeline,
        /// For each.
        body: Vec<Node>,
        /// If there is none.
        otherwise: Vec<Node>,
    },
    /// `template`: its name and data.
    Template(String, Option<Pipeline>, usize),
    /// `break`.
    Break,
    /// `continue`.
    Continue,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Line, from 1.
    pub line: usize,
    /// Variables that it sets.
    pub names: Vec<String>,
    /// They are new.
    pub is_declaration: bool,
    /// What is run.
    pub commands: Vec<Vec<Operand>>,
}

/// A word of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// `nil`.
    Nil,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A string.
    Text(String),
    /// The dot, with fields.
    Dot(Vec<String>),
    /// A variable, with fields.
    Variable(String, Vec<String>),
    /// A pipeline in parentheses, with fields.
    Group(Box<Pipeline>, Vec<String>),
    /// A function.
    Function(String),
}

/// A tree, and the definitions that stood in it.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    /// What the template itself does.
    pub body: Vec<Node>,
    /// `define`d ones by name.
    pub defined: Vec<(String, Vec<Node>)>,
}

type Fault = (usize, String);

/// Reads a template. The error is a line and what is wrong there.
pub fn parse(text: &str) -> Result<Parsed, Fault> {
    let mut parser = Parser { pieces: lex(text)?.into_iter(), defined: Vec::new() };
    match parser.block()? {
        (body, Stop::Text) => Ok(Parsed { body, defined: parser.defined }),
        (_, Stop::End(line) | Stop::Else(line, _)) => {
            Err((line, "this belongs to no if, with, range or define".into()))
        }
    }
}

/// What a block ends with.
enum Stop {
    Text,
    End(usize),
    /// What follows `else`.
    Else(usize, Vec<Lexeme>),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    defined: Vec<(String, Vec<Node>)>,
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, Stop), Fault> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { line, tokens } => (line, tokens),
            };
            let keyword = match tokens.first().map(|l| &l.token) {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            let rest = tokens.get(1..).unwrap_or_default();
            match keyword {
                "end" => return Ok((nodes, Stop::End(line))),
                "else" => return Ok((nodes, Stop::Else(line, rest.to_vec()))),
                "if" | "with" => nodes.push(self.branch(keyword == "with", line, rest)?),
                "range" => {
                    let over = pipeline(line, rest)?;
                    let (body, stop) = self.block()?;
                    let otherwise = self.otherwise(line, stop, false)?;
                    nodes.push(Node::Range { over, body, otherwise });
                }
                "define" => {
                    let [Lexeme { token: Token::Text(name), .. }] = rest else {
                        return Err((line, "define wants a name in quotes".into()));
                    };
                    match self.block()? {
                        (body, Stop::End(_)) => self.defined.push((name.clone(), body)),
                        _ => return Err((line, format!("define {name:?} has no end"))),
                    }
                }
                "template" => {
                    let Some((Lexeme { token: Token::Text(name), .. }, data)) = rest.split_first() else {
                        return Err((line, "template wants a name in quotes".into()));
                    };
                    let data = if data.is_empty() { None } else { Some(pipeline(line, data)?) };
                    nodes.push(Node::Template(name.clone(), data, line));
                }
                "break" if rest.is_empty() => nodes.push(Node::Break),
                "continue" if rest.is_empty() => nodes.push(Node::Continue),
                "block" => return Err((line, "block is not supported: use define and include".into())),
                _ => nodes.push(Node::Action(pipeline(line, &tokens)?)),
            }
        }
        Ok((nodes, Stop::Text))
    }

    fn branch(&mut self, is_with: bool, line: usize, tokens: &[Lexeme]) -> Result<Node, Fault> {
        let condition = pipeline(line, tokens)?;
        let (body, stop) = self.block()?;
        let otherwise = self.otherwise(line, stop, true)?;
        Ok(Node::Branch { is_with, condition, body, otherwise })
    }

    /// What follows the first body. A chain of `else if` shares one end.
    fn otherwise(&mut self, line: usize, stop: Stop, may_chain: bool) -> Result<Vec<Node>, Fault> {
        match stop {
            Stop::Text => Err((line, "there is no end to this".into())),
            Stop::End(_) => Ok(Vec::new()),
            Stop::Else(line, tokens) => match tokens.first().map(|l| &l.token) {
                None => match self.block()? {
                    (nodes, Stop::End(_)) => Ok(nodes),
                    _ => Err((line, "there is no end to this else".into())),
                },
                Some(Token::Word(word)) if may_chain && (word == "if" || word == "with") => {
                    Ok(vec![self.branch(word == "with", line, &tokens[1..])?])
                }
                Some(_) => Err((line, "else goes alone, or with if or with".into())),
            },
        }
    }
}

fn pipeline(line: usize, tokens: &[Lexeme]) -> Result<Pipeline, Fault> {
    let mut reader = Reader { line, tokens, at: 0 };
    let read = reader.pipeline()?;
    match reader.peek() {
        None => Ok(read),
        Some(_) => Err((line, "a closing parenthesis without an opening one".into())),
    }
}

struct Reader<'a> {
    line: usize,
    tokens: &'a [Lexeme],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|l| &l.token)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Fault> {
        Err((self.line, message.into()))
    }

    /// `$a, $b :=` before a pipeline.
    fn names(&mut self) -> (Vec<String>, bool) {
        let (mut names, mut at) = (Vec::new(), self.at);
        while let Some(Token::Variable(name)) = self.tokens.get(at).map(|l| &l.token) {
            names.push(name.clone());
            at += 1;
            match self.tokens.get(at).map(|l| &l.token) {
                Some(Token::Comma) => at += 1,
                Some(sign @ (Token::Declare | Token::Assign)) => {
                    self.at = at + 1;
                    return (names, *sign == Token::Declare);
                }
                _ => break,
            }
        }
        (Vec::new(), false)
    }

    fn pipeline(&mut self) -> Result<Pipeline, Fault> {
        let (names, is_declaration) = self.names();
        let mut commands = Vec::new();
        loop {
            let mut command = Vec::new();
            while !matches!(self.peek(), None | Some(Token::Pipe | Token::Close)) {
                command.push(self.operand()?);
            }
            if command.is_empty() {
                return self.fail("a command is missing");
            }
            commands.push(command);
            if self.peek() != Some(&Token::Pipe) {
                return Ok(Pipeline { line: self.line, names, is_declaration, commands });
            }
            self.at += 1;
        }
    }

    fn operand(&mut self) -> Result<Operand, Fault> {
        let Some(token) = self.peek().cloned() else { return self.fail("an operand is missing") };
        self.at += 1;
        Ok(match token {
            Token::Word(word) => match word.as_str() {
                "nil" => Operand::Nil,
                "true" | "false" => Operand::Bool(word == "true"),
                _ => Operand::Function(word),
            },
            Token::Int(value) => Operand::Int(value),
            Token::Float(value) => Operand::Float(value),
            Token::Text(value) => Operand::Text(value),
            Token::Dot => Operand::Dot(Vec::new()),
            Token::Field(name) => {
                let mut fields = vec![name];
                fields.extend(self.fields());
                Operand::Dot(fields)
            }
            Token::Variable(name) => Operand::Variable(name, self.fields()),
            Token::Open => {
                let inner = self.pipeline()?;
                if self.peek() != Some(&Token::Close) {
                    return self.fail("a parenthesis is not closed");
                }
                self.at += 1;
                Operand::Group(Box::new(inner), self.fields())
            }
            Token::Pipe | Token::Close | Token::Comma | Token::Declare | Token::Assign => {
                return self.fail("an operand is missing");
            }
        })
    }

    /// Fields right behind an operand.
    fn fields(&mut self) -> Vec<String> {
        let mut fields = Vec::new();
        while let Some(Lexeme { token: Token::Field(name), is_glued: true }) = self.tokens.get(self.at) {
            fields.push(name.clone());
            self.at += 1;
        }
        fields
    }
}
