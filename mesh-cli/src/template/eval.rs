//! Runs templates over values. Called by `chart`. Of the language's functions, those that need the engine or do not look at all their
//! arguments stand here (`include`, `and`, `or`); all others are in `functions`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::TemplateError;
use super::functions::{call, is_true, print};
use super::parser::{Node, Operand, Parsed, Pipeline, parse};

/// Templates that include each other for ever end here.
const MAX_DEPTH: usize = 64;

/// Templates by name.
#[derive(Debug, Default)]
pub struct Engine {
    templates: BTreeMap<String, (String, Vec<Node>)>,
}

/// Why a node was left.
enum Exit {
    Break,
    Continue,
    Failed(TemplateError),
}

type Flow<T> = Result<T, Exit>;

impl Engine {
    /// Adds the template of a file and what it defines.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), TemplateError> {
        let parsed = parse(text);
        let Parsed { body, defined } =
            parsed.map_err(|(line, message)| TemplateError { template: file.to_owned(), line, message })?;
        self.templates.insert(file.to_owned(), (file.to_owned(), body));
        for (name, body) in defined {
            self.templates.insert(name, (file.to_owned(), body));
        }
        Ok(())
    }

    /// What a template makes of `data`.
    pub fn render(&self, name: &str, data: &Value) -> Result<String, TemplateError> {
        self.run(name, name, 1, data, 0)
    }

    fn run(&self, name: &str, from: &str, line: usize, data: &Value, depth: usize) -> Result<String, TemplateError> {
        let fail = |message: String| Err(TemplateError { template: from.to_owned(), line, message });
        let Some((file, body)) = self.templates.get(name) else { return fail(format!("no template {name:?}")) };
        if depth > MAX_DEPTH {
            return fail(format!("{name:?} includes itself for ever"));
        }
        let variables = vec![(String::new(), data.clone())];
        let mut run = Run { engine: self, file, depth, variables, out: String::new(), line };
        match run.nodes(body, data) {
            Ok(()) => Ok(run.out),
            Err(Exit::Failed(error)) => Err(error),
            Err(Exit::Break | Exit::Continue) => fail("break and continue belong into a range".into()),
        }
    }
}

/// One template being run.
struct Run<'a> {
    engine: &'a Engine,
    file: &'a str,
    depth: usize,
    /// The innermost last; `$` is the first, with an empty name.
    variables: Vec<(String, Value)>,
    out: String,
    /// Of the action that runs.
    line: usize,
}

impl Run<'_> {
    fn fail<T>(&self, message: impl Into<String>) -> Flow<T> {
        let (template, line) = (self.file.to_owned(), self.line);
        Err(Exit::Failed(TemplateError { template, line, message: message.into() }))
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Flow<()> {
        let outer = self.variables.len();
        let result = nodes.iter().try_for_each(|node| self.node(node, dot));
        self.variables.truncate(outer);
        result
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Flow<()> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.names.is_empty() {
                    self.out.push_str(&print(&value));
                }
            }
            Node::Branch { is_with, condition, body, otherwise } => {
                let outer = self.variables.len();
                let value = self.pipeline(condition, dot)?;
                match (is_true(&value), is_with) {
                    (true, true) => self.nodes(body, &value)?,
                    (true, false) => self.nodes(body, dot)?,
                    (false, _) => self.nodes(otherwise, dot)?,
                }
                self.variables.truncate(outer);
            }
            Node::Range { over, body, otherwise } => self.range(over, body, otherwise, dot)?,
            Node::Template(name, data, line) => {
                self.line = *line;
                let data = match data {
                    Some(data) => self.pipeline(data, dot)?,
                    None => Value::Null,
                };
                let text = self.include(name, &data)?;
                self.out.push_str(&text);
            }
            Node::Break => return Err(Exit::Break),
            Node::Continue => return Err(Exit::Continue),
        }
        Ok(())
    }

    /// Maps are ranged over in the order of their keys, as Go does.
    fn range(&mut self, over: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Flow<()> {
        let value = self.commands(over, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items.into_iter().enumerate().map(|(n, item)| (Value::from(n), item)).collect(),
            Value::Object(map) => {
                let mut items: Vec<_> = map.into_iter().collect();
                items.sort_by(|a, b| a.0.cmp(&b.0));
                items.into_iter().map(|(key, item)| (Value::from(key), item)).collect()
            }
            other => return self.fail(format!("range over {}", print(&other))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        let outer = self.variables.len();
        for (key, item) in items {
            match over.names.as_slice() {
                [] => {}
                [name] => self.variables.push((name.clone(), item.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
                _ => return self.fail("range sets at most two variables"),
            }
            let result = self.nodes(body, &item);
            self.variables.truncate(outer);
            match result {
                Err(Exit::Break) => break,
                Ok(()) | Err(Exit::Continue) => {}
                failed => return failed,
            }
        }
        Ok(())
    }

    /// Runs a pipeline and sets its variables.
    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Flow<Value> {
        let value = self.commands(pipeline, dot)?;
        match (pipeline.names.as_slice(), pipeline.is_declaration) {
            ([], _) => {}
            ([name], true) => self.variables.push((name.clone(), value.clone())),
            ([name], false) => match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                Some((_, place)) => *place = value.clone(),
                None => return self.fail(format!("undefined variable ${name}")),
            },
            _ => return self.fail("only range sets two variables"),
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Flow<Value> {
        self.line = pipeline.line;
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, value, dot)?);
        }
        Ok(value.unwrap_or(Value::Null))
    }

    fn command(&mut self, words: &[Operand], piped: Option<Value>, dot: &Value) -> Flow<Value> {
        let Some((first, rest)) = words.split_first() else { return self.fail("a command is missing") };
        let takes = rest.len() + usize::from(piped.is_some());
        match first {
            Operand::Function(name) => self.function(name, rest, piped, dot),
            Operand::Dot(fields) | Operand::Variable(_, fields) | Operand::Group(_, fields) if takes > 0 => {
                let arguments = self.arguments(rest, piped, dot)?;
                self.method(first, fields, &arguments, dot)
            }
            _ if takes > 0 => self.fail("only a function takes arguments"),
            _ => self.operand(first, dot),
        }
    }

    fn arguments(&mut self, words: &[Operand], piped: Option<Value>, dot: &Value) -> Flow<Vec<Value>> {
        let mut arguments = words.iter().map(|word| self.operand(word, dot)).collect::<Flow<Vec<_>>>()?;
        arguments.extend(piped);
        Ok(arguments)
    }

    fn function(&mut self, name: &str, words: &[Operand], piped: Option<Value>, dot: &Value) -> Flow<Value> {
        if name == "and" || name == "or" {
            return self.first_that_decides(name == "or", words, piped, dot);
        }
        let arguments = self.arguments(words, piped, dot)?;
        match (name, arguments.as_slice()) {
            ("include", [Value::String(template), data]) => self.include(template, data).map(Value::from),
            _ => call(name, &arguments).or_else(|why| self.fail(format!("{name}: {why}"))),
        }
    }

    /// The first argument that is true, or that is not; those after it are not looked at.
    fn first_that_decides(
        &mut self,
        wanted: bool,
        words: &[Operand],
        piped: Option<Value>,
        dot: &Value,
    ) -> Flow<Value> {
        let mut last = None;
        for word in words {
            let value = self.operand(word, dot)?;
            if is_true(&value) == wanted {
                return Ok(value);
            }
            last = Some(value);
        }
        match piped.or(last) {
            Some(value) => Ok(value),
            None => self.fail("and and or want arguments"),
        }
    }

    fn include(&mut self, name: &str, data: &Value) -> Flow<String> {
        self.engine.run(name, self.file, self.line, data, self.depth + 1).map_err(Exit::Failed)
    }

    fn operand(&mut self, word: &Operand, dot: &Value) -> Flow<Value> {
        Ok(match word {
            Operand::Nil => Value::Null,
            Operand::Bool(value) => Value::from(*value),
            Operand::Int(value) => Value::from(*value),
            Operand::Float(value) => Value::from(*value),
            Operand::Text(value) => Value::from(value.as_str()),
            Operand::Function(name) => self.function(name, &[], None, dot)?,
            Operand::Dot(fields) | Operand::Variable(_, fields) | Operand::Group(_, fields) => {
                let base = self.base(word, dot)?;
                self.fields(&base, fields)?
            }
        })
    }

    /// What fields are asked of.
    fn base<'v>(&mut self, word: &Operand, dot: &'v Value) -> Flow<Cow<'v, Value>> {
        Ok(match word {
            Operand::Variable(name, _) => match self.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => Cow::Owned(value.clone()),
                None => return self.fail(format!("undefined variable ${name}")),
            },
            Operand::Group(pipeline, _) => {
                let (line, value) = (self.line, self.pipeline(pipeline, dot)?);
                self.line = line;
                Cow::Owned(value)
            }
            _ => Cow::Borrowed(dot),
        })
    }

    /// A key that is missing is nothing; a field of nothing is an error.
    fn fields(&mut self, base: &Value, fields: &[String]) -> Flow<Value> {
        let mut value = base;
        for field in fields {
            value = match value {
                Value::Object(map) => map.get(field).unwrap_or(&Value::Null),
                Value::Null => {
                    return self.fail(format!("there is no .{field} of nothing (a value before it is missing)"));
                }
                other => return self.fail(format!("there is no .{field} of {}", print(other))),
            };
        }
        Ok(value.clone())
    }

    /// `.Files.Get "name"`: files are a map from path to text.
    fn method(&mut self, word: &Operand, fields: &[String], arguments: &[Value], dot: &Value) -> Flow<Value> {
        let base = self.base(word, dot)?;
        match (fields.split_last(), arguments) {
            (Some((method, fields)), [Value::String(name)]) if method == "Get" => match self.fields(&base, fields)? {
                Value::Object(files) => Ok(files.get(name).cloned().unwrap_or_else(|| Value::from(""))),
                _ => self.fail("there is no .Get of this"),
            },
            _ => self.fail("only a function takes arguments"),
        }
    }
}
