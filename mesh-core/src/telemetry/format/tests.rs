//! Tables: formats and the lines they make, and what is no format.

use super::*;

/// A request of which some things are known.
struct Known;

impl Values for Known {
    fn field(&self, message: Message, field: &Field) -> Option<&[u8]> {
        match (message, field) {
            (Message::Request, Field::Method) => Some(b"GET"),
            (Message::Request, Field::Path) => Some(b"/a?b=\"c\""),
            (Message::Request, Field::Header(name)) if name == "x-evil" => Some(b"a\r\nb\x1b[31m\"\\"),
            (Message::Request, Field::Header(name)) if name == "x-bytes" => Some(b"\xff\xfe"),
            (Message::Request, Field::Header(name)) if name == "x-wide" => Some("\u{e9}\u{e9}\u{202e}".as_bytes()),
            (Message::Response, Field::Header(name)) if name == "server" => Some(b"app"),
            _ => None,
        }
    }

    fn plain(&self, what: Plain, out: &mut String) -> bool {
        let text = match what {
            Plain::BytesSent => "12",
            Plain::ResponseCode => "200",
            Plain::ResponseFlags => "-",
            Plain::RouteName => "r1",
            Plain::GrpcNumber => "14",
            Plain::GrpcCamel => "Unavailable",
            Plain::GrpcSnake => "UNAVAILABLE",
            _ => return false,
        };
        out.push_str(text);
        true
    }

    fn start(&self, format: Option<&str>, out: &mut String) {
        out.push_str(format.unwrap_or("2026-01-01T00:00:00.000Z"));
    }
}

fn line(format: &Format) -> String {
    let (mut scratch, mut out) = ("rest".to_owned(), String::new());
    format.line(&Known, &mut scratch, &mut out);
    out
}

#[test]
fn lines_of_text() {
    for (format, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%REQ(:METHOD)%", "GET"),
        ("%REQ(:method)%", "GET"),
        ("\"%REQ(:PATH)%\"", "\"/a?b=\\\"c\\\"\""),
        ("%REQ(:PATH):2%", "/a"),
        ("%REQ(X-NONE)%", "-"),
        ("%REQ(X-NONE?:METHOD)%", "GET"),
        ("%REQ(X-NONE?X-NEITHER):3%", "-"),
        ("%REQ(X-EVIL)%", "a\\u{d}\\u{a}b\\u{1b}[31m\\\"\\\\"),
        ("%REQ(X-BYTES)%", "\u{fffd}\u{fffd}"),
        ("%REQ(X-WIDE)%", "\u{e9}\u{e9}\\u{202e}"),
        // Cut at a whole character.
        ("%REQ(X-WIDE):3%", "\u{e9}"),
        ("%REQ(X-WIDE):0%", ""),
        ("%RESP(Server)% %TRAILER(x)%", "app -"),
        ("%START_TIME%", "2026-01-01T00:00:00.000Z"),
        ("%START_TIME(%Y/%m)%", "%Y/%m"),
        ("%BYTES_SENT% %BYTES_RECEIVED%", "12 -"),
        ("%RESPONSE_CODE%%RESPONSE_FLAGS%%ROUTE_NAME%", "200-r1"),
        ("%REQUESTED_SERVER_NAME% %CONNECTION_TERMINATION_DETAILS%", "- -"),
        ("%GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%", "14 14"),
        ("%GRPC_STATUS% %GRPC_STATUS()% %GRPC_STATUS(CAMEL_STRING):5%", "Unavailable Unavailable Unava"),
        ("%GRPC_STATUS(SNAKE_STRING)%", "UNAVAILABLE"),
    ] {
        assert_eq!(line(&Format::text(format).unwrap()), expected, "{format}");
    }
}

#[test]
fn what_is_no_format_names_the_operator_and_where_it_is() {
    for (format, expected) in [
        ("%", "an operator without its second % at character 1"),
        ("ab %REQ(x", "an operator without its second % at character 4"),
        ("\u{e9}%NOPE%", "the operator %NOPE% is not known at character 2"),
        ("%req(x)%", "a waypoint has no operator req with parameters at character 1"),
        ("%REQ%", "%REQ%: write %REQ(HEADER)% at character 1"),
        ("%REQ(a b)%", "\"a b\" is no name of a header at character 1"),
        ("%REQ()%", "\"\" is no name of a header at character 1"),
        ("%REQ(a?)%", "\"\" is no name of a header at character 1"),
        ("%REQ(a):x%", "%REQ(a):x%: \"x\" is no length at character 1"),
        ("%REQ(a):-1%", "%REQ(a):-1%: \"-1\" is no length at character 1"),
        ("%REQ(a)5%", "%REQ(a)5%: \"5\" after the ) at character 1"),
        ("%GRPC_STATUS(KEBAB)%", "a waypoint has no operator GRPC_STATUS with parameters at character 1"),
        ("%DYNAMIC_METADATA(a:b)%", "a waypoint has no operator DYNAMIC_METADATA with parameters at character 1"),
    ] {
        let error = Format::text(format).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{format}: {error}");
    }
    assert!(Format::text(&"x".repeat(LONGEST + 1)).is_err());
    let error = Format::json(&[("a", "%ROUTE_NAME%"), ("b", "x%NOPE%")]).unwrap_err();
    assert_eq!(error.to_string(), "the operator %NOPE% is not known at character 2 of \"b\"");
    assert!(Format::json(&vec![("a", ""); MOST_KEYS + 1]).is_err());
}

#[test]
fn lines_of_json() {
    let keys = [
        ("code", "%RESPONSE_CODE%"),
        ("evil\"", "%REQ(X-EVIL)%"),
        ("none", "%REQ(X-NONE)%"),
        ("text", "a%BYTES_SENT%b%REQ(X-NONE)%"),
        ("cut", "%REQ(:PATH):2%"),
        ("plain", "1"),
    ];
    let written = line(&Format::json(&keys).unwrap());
    assert_eq!(
        written,
        concat!(
            r#"{"code":200,"evil\"":"a\r\nb\u001b[31m\"\\","none":null,"text":"a12b-","cut":"/a","plain":"1"}"#,
            "\n"
        )
    );
}

#[test]
fn the_defaults_are_formats() {
    assert!(matches!(Format::default(), Format::Text(_)));
    let Format::Json(keys) = Format::default_json() else { panic!("no JSON") };
    assert_eq!(keys.len(), DEFAULT_JSON.len());
    let shown = line(&Format::default());
    assert!(shown.starts_with("[2026-01-01T00:00:00.000Z] \"GET /a?b=\\\"c\\\" -\" 200 - "), "{shown}");
    assert!(shown.ends_with(" r1\n"), "{shown}");
}
