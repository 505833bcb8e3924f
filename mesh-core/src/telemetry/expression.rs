//! Expressions of CEL over a request that is over, as filters of access logs and labels of metrics have them: `response.code >= 400`. What an expression may
//! cost is bounded when it is compiled: there are no loops in it (`all`, `map` and the like), no regular expressions, and only so many operators.

use std::collections::HashMap;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::{Context, Program, Value};

/// Longest expression in bytes.
pub const LONGEST: usize = 2048;
/// Most operators, names and values in one.
const MOST_NODES: usize = 128;
/// Longest text that an expression gives.
pub const LONGEST_TEXT: usize = 512;

/// What an expression may call.
const FUNCTIONS: [&str; 24] = [
    "_?_:_",
    "_&&_",
    "_||_",
    "!_",
    "_-_",
    "_+_",
    "_*_",
    "_/_",
    "_%_",
    "_==_",
    "_!=_",
    "_>=_",
    "_<=_",
    "_>_",
    "_<_",
    "-_",
    "_[_]",
    "@in",
    "contains",
    "startsWith",
    "endsWith",
    "size",
    "string",
    "int",
];

macro_rules! attributes {
    ($($name:ident = $root:literal $member:literal;)*) => {
        /// What an expression can ask of a request, with Envoy's names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "they are called as in expressions")]
        pub enum Attribute { $($name,)* }

        const ATTRIBUTES: &[(&str, &str, Attribute)] = &[$(($root, $member, Attribute::$name),)*];
    };
}

attributes! {
    RequestPath = "request" "path";
    RequestUrlPath = "request" "url_path";
    RequestQuery = "request" "query";
    RequestHost = "request" "host";
    RequestScheme = "request" "scheme";
    RequestMethod = "request" "method";
    RequestProtocol = "request" "protocol";
    RequestReferer = "request" "referer";
    RequestUserAgent = "request" "useragent";
    RequestId = "request" "id";
    RequestHeaders = "request" "headers";
    RequestSize = "request" "size";
    ResponseCode = "response" "code";
    ResponseCodeDetails = "response" "code_details";
    ResponseFlags = "response" "flags";
    ResponseGrpcStatus = "response" "grpc_status";
    ResponseHeaders = "response" "headers";
    ResponseSize = "response" "size";
    SourceAddress = "source" "address";
    SourcePort = "source" "port";
    DestinationAddress = "destination" "address";
    DestinationPort = "destination" "port";
    ConnectionMtls = "connection" "mtls";
    ConnectionPeer = "connection" "uri_san_peer_certificate";
    ConnectionLocal = "connection" "uri_san_local_certificate";
    ConnectionServerName = "connection" "requested_server_name";
    ConnectionTermination = "connection" "termination_details";
    UpstreamAddress = "upstream" "address";
    UpstreamPort = "upstream" "port";
    UpstreamFailure = "upstream" "transport_failure_reason";
    RouteName = "xds" "route_name";
    ClusterName = "xds" "cluster_name";
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Is(bool),
    /// Headers, with names in lower case.
    Headers(Vec<(String, String)>),
}

/// Why a text is no expression that is carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is too long or asks for too much.
    #[error("{0}")]
    TooMuch(String),
    /// It is none of CEL's.
    #[error("it is no expression: {0}")]
    Syntax(String),
    /// It asks for something that nobody knows.
    #[error("{0}")]
    Unknown(String),
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    written: String,
    program: Program,
    wanted: Vec<(&'static str, &'static str, Attribute)>,
    /// It is a text that is always the same.
    literal: Option<String>,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Expression {}

impl Expression {
    /// Compiles a text.
    pub fn compile(written: &str) -> Result<Self, ExpressionError> {
        if written.len() > LONGEST {
            return Err(ExpressionError::TooMuch(format!("it is longer than {LONGEST} bytes")));
        }
        let program = Program::compile(written).map_err(|errors| {
            let mut text = String::new();
            super::write::escaped(errors.to_string().lines().next().unwrap_or_default(), &mut text);
            ExpressionError::Syntax(text)
        })?;
        let mut walk = Walk { nodes: 0, wanted: Vec::new() };
        walk.visit(program.expression())?;
        let literal = match &program.expression().expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
            _ => None,
        };
        Ok(Self { written: written.to_owned(), program, wanted: walk.wanted, literal })
    }

    /// As it was written.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The text that it always is.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        self.literal.as_deref()
    }

    /// What it asks for.
    pub fn wants(&self, attribute: Attribute) -> bool {
        self.wanted.iter().any(|(.., wanted)| *wanted == attribute)
    }

    /// Whether it is true. What cannot be said, because an attribute is missing or of another kind, is not true.
    pub fn is_true(&self, known: impl Fn(Attribute) -> Option<Datum>) -> bool {
        matches!(self.evaluate(known), Some(Value::Bool(true)))
    }

    /// Its text, if it has one: numbers and truth are written out.
    pub fn text(&self, known: impl Fn(Attribute) -> Option<Datum>) -> Option<String> {
        if let Some(literal) = &self.literal {
            return Some(literal.clone());
        }
        let text = match self.evaluate(known)? {
            Value::String(text) => text.to_string(),
            Value::Int(number) => number.to_string(),
            Value::UInt(number) => number.to_string(),
            Value::Bool(is) => is.to_string(),
            _ => return None,
        };
        Some(super::write::cut(&text, LONGEST_TEXT).to_owned())
    }

    fn evaluate(&self, known: impl Fn(Attribute) -> Option<Datum>) -> Option<Value> {
        let mut roots: HashMap<&'static str, HashMap<String, Value>> = HashMap::new();
        for (root, member, attribute) in &self.wanted {
            let members = roots.entry(root).or_default();
            if let Some(datum) = known(*attribute) {
                members.insert((*member).to_owned(), datum.into());
            }
        }
        let mut context = Context::default();
        for (root, members) in roots {
            context.add_variable_from_value(root, members);
        }
        self.program.execute(&context).ok()
    }
}

impl From<Datum> for Value {
    fn from(datum: Datum) -> Self {
        match datum {
            Datum::Text(text) => Self::from(text),
            Datum::Number(number) => Self::Int(number),
            Datum::Is(is) => Self::Bool(is),
            Datum::Headers(headers) => {
                let mut map: HashMap<String, Value> = HashMap::new();
                for (name, value) in headers {
                    map.entry(name).or_insert_with(|| Value::from(value));
                }
                Self::from(map)
            }
        }
    }
}

/// Looks at all of an expression.
struct Walk {
    nodes: usize,
    wanted: Vec<(&'static str, &'static str, Attribute)>,
}

impl Walk {
    fn visit(&mut self, node: &IdedExpr) -> Result<(), ExpressionError> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(ExpressionError::TooMuch(format!("it has more than {MOST_NODES} parts")));
        }
        match &node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(root) => self.attribute(root, &select.field),
                _ => self.visit(&select.operand),
            },
            Expr::Call(call) => {
                if !FUNCTIONS.contains(&call.func_name.as_str()) {
                    return Err(ExpressionError::Unknown(format!("the function {:?} is not known", call.func_name)));
                }
                // request['path'] is request.path
                if let ("_[_]", [operand, index]) = (call.func_name.as_str(), &*call.args)
                    && let (Expr::Ident(root), Expr::Literal(LiteralValue::String(member))) =
                        (&operand.expr, &index.expr)
                {
                    return self.attribute(root, member.inner());
                }
                call.target.iter().map(|target| &**target).chain(&call.args).try_for_each(|part| self.visit(part))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|part| self.visit(part)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => self.visit(&entry.key).and_then(|()| self.visit(&entry.value)),
                EntryExpr::StructField(field) => self.visit(&field.value),
            }),
            Expr::Ident(name) => {
                Err(ExpressionError::Unknown(format!("{name:?} alone says nothing: write {name}.SOMETHING")))
            }
            Expr::Comprehension(_) => Err(ExpressionError::TooMuch(
                "loops such as all, exists, map and filter are not carried out".to_owned(),
            )),
            Expr::Struct(_) | Expr::Unspecified => {
                Err(ExpressionError::Unknown("objects are not made here".to_owned()))
            }
        }
    }

    fn attribute(&mut self, root: &str, member: &str) -> Result<(), ExpressionError> {
        let found = ATTRIBUTES.iter().find(|(known, name, _)| *known == root && *name == member);
        let found = *found.ok_or_else(|| {
            ExpressionError::Unknown(format!("a waypoint does not know {root}.{member} of a request"))
        })?;
        if !self.wanted.contains(&found) {
            self.wanted.push(found);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(attribute: Attribute) -> Option<Datum> {
        Some(match attribute {
            Attribute::ResponseCode => Datum::Number(503),
            Attribute::RequestHost => Datum::Text("shop".to_owned()),
            Attribute::RequestUrlPath => Datum::Text("/v1/a".to_owned()),
            Attribute::ConnectionMtls => Datum::Is(true),
            Attribute::RequestHeaders => Datum::Headers(vec![("x-user".to_owned(), "jason".to_owned())]),
            _ => return None,
        })
    }

    #[test]
    fn what_is_true_of_a_request() {
        for (expression, expected) in [
            ("response.code >= 400", true),
            ("response.code >= 400 && response.code < 500", false),
            ("!has(response.code) || response.code >= 500", true),
            ("!has(response.grpc_status)", true),
            ("has(response.grpc_status) && response.grpc_status != 0", false),
            // Nothing is known of it.
            ("response.grpc_status == 0", false),
            ("request.headers['x-user'] == 'jason'", true),
            ("request.headers['x-none'] == 'jason'", false),
            ("'x-user' in request.headers", true),
            ("request.url_path.startsWith('/v1') && connection.mtls", true),
            ("request.host in ['a', 'shop']", true),
            ("request['host'] == 'shop'", true),
            ("response.code == 503 ? false : true", false),
            ("response.code / 0 == 1", false),
            // Not a truth.
            ("response.code", false),
        ] {
            let compiled = Expression::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert_eq!(compiled.is_true(known), expected, "{expression}");
        }
    }

    #[test]
    fn texts_for_labels() {
        for (expression, expected) in [
            ("'a b'", Some("a b")),
            ("request.host", Some("shop")),
            ("string(response.code)", Some("503")),
            ("response.code", Some("503")),
            ("request.host + ':' + request.url_path", Some("shop:/v1/a")),
            ("request.id", None),
            ("request.headers", None),
        ] {
            let compiled = Expression::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert_eq!(compiled.text(known).as_deref(), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_carried_out_is_said() {
        let long = "x".repeat(LONGEST + 1);
        let many = vec!["true"; MOST_NODES].join(" && ");
        let deep = format!("{}true{}", "(".repeat(900), ")".repeat(900));
        for (expression, expected) in [
            ("response.code >=", "it is no expression"),
            ("", "it is no expression"),
            (&long, "longer than 2048 bytes"),
            (&many, "more than 128 parts"),
            (&deep, "it is no expression"),
            ("response.cod >= 400", "does not know response.cod "),
            ("metadata.filter == 1", "does not know metadata.filter "),
            ("response", "\"response\" alone says nothing"),
            ("request.headers.all(h, h == 'x')", "loops such as all"),
            ("request.host.matches('a*')", "the function \"matches\" is not known"),
        ] {
            let error = Expression::compile(expression).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expression}: {error}");
        }
    }
}
