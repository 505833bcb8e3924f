//! Tables of templates and what comes out. The chart itself is compared with Helm's engine in `tests/helm.rs`.

use serde_json::{Value, json};

use super::{Engine, yaml};

fn data() -> Value {
    json!({
        "a": 1, "name": "web", "no": false, "zero": 0, "empty": "", "list": ["x", "y"], "none": null,
        "map": {"z": 1, "b": {"c": "deep"}, "a": "first"}, "float": 1.5,
        "Files": {"files/x.txt": "text of x"},
    })
}

fn render(text: &str) -> Result<String, String> {
    let mut engine = Engine::default();
    engine.add("t", text).map_err(|error| error.to_string())?;
    engine.render("t", &data()).map_err(|error| error.to_string())
}

#[test]
fn templates_give_what_go_gives() {
    let table = [
        ("plain", "plain"),
        ("{{ .name }}", "web"),
        (
            "[{{ .a }} {{ .float }} {{ .no }} {{ .list }} {{ .map }}]",
            "[1 1.5 false [x y] map[a:first b:map[c:deep] z:1]]",
        ),
        ("<{{ .missing }}{{ .none }}>", "<>"),
        ("{{ .map.b.c }} {{ (.map).b.c }} {{ $.map.b.c }}", "deep deep deep"),
        // White space.
        ("a \n {{- .name -}} \n b", "awebb"),
        ("a {{ .name -}} \n b", "a webb"),
        ("a\n{{- /* a note }} here */ -}}\nb", "ab"),
        ("a{{/* a note */}} b", "a b"),
        ("{{ -3 }}|{{- 3 }}", "-3|3"),
        // Branches.
        ("{{ if .name }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .zero }}a{{ else if .empty }}b{{ else if .name }}c{{ else }}d{{ end }}", "c"),
        ("{{ with .map.b }}{{ .c }}{{ $.name }}{{ end }}", "deepweb"),
        ("{{ with .missing }}a{{ else }}b{{ end }}", "b"),
        ("{{ with .missing }}a{{ else with .name }}{{ . }}{{ end }}", "web"),
        ("{{ with $x := .name }}{{ $x }}{{ end }}", "web"),
        // Loops: maps in the order of their keys.
        ("{{ range .list }}{{ . }},{{ end }}", "x,y,"),
        ("{{ range $i, $x := .list }}{{ $i }}{{ $x }}{{ end }}", "0x1y"),
        ("{{ range $k, $v := .map }}{{ $k }}{{ end }}", "abz"),
        ("{{ range $x := .list }}{{ $x }}{{ $.name }}{{ end }}", "xwebyweb"),
        ("{{ range .missing }}a{{ else }}b{{ end }}", "b"),
        ("{{ range .list }}{{ if eq . \"x\" }}{{ continue }}{{ end }}{{ . }}{{ end }}", "y"),
        ("{{ range .list }}{{ . }}{{ break }}{{ end }}", "x"),
        // Variables and their scopes.
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := .map }}{{ $x.b.c }}", "deep"),
        // Pipelines and functions.
        ("{{ .name | quote }} {{ quote .a .missing }}", "\"web\" \"1\""),
        ("{{ \"a\\\"b\" | quote }} {{ `raw\\n` }}", "\"a\\\"b\" raw\\n"),
        ("{{ .empty | default \"x\" }} {{ default \"x\" .name }}", "x web"),
        ("{{ printf \"%s-%d-%v-%q-%%\" .name 7 .list \"s\" }}", "web-7-[x y]-\"s\"-%"),
        ("{{ if and .name (not .no) }}t{{ end }}{{ or .empty \"\" .name }}", "tweb"),
        ("{{ and .missing (fail \"not looked at\") }}", ""),
        ("{{ or .name (fail \"not looked at\") }}", "web"),
        ("{{ eq .name \"x\" \"web\" }} {{ ne .a 1 }} {{ eq .a 1 }}", "true false true"),
        ("{{ (dict \"k\" .name \"l\" (list 1 2)).l }}", "[1 2]"),
        ("{{ indent 2 \"a\\nb\" }}{{ nindent 2 \"c\" }}", "  a\n  b\n  c"),
        ("{{ toYaml .map | nindent 2 }}", "\n  a: first\n  b:\n    c: deep\n  z: 1"),
        ("{{ .Files.Get \"files/x.txt\" }}{{ $.Files.Get \"other\" }}", "text of x"),
        ("{{ trimSuffix \"b\" \"web\" | trim | lower }}", "we"),
        ("{{ hasKey .map \"b\" }}", "true"),
        // Definitions.
        (
            "{{ define \"d\" }}<{{ .name }}>{{ end }}{{ include \"d\" . | quote }}{{ template \"d\" . }}",
            "\"<web>\"<web>",
        ),
        ("{{ define \"d\" }}{{ $.k }}{{ end }}{{ include \"d\" (dict \"k\" .name) }}", "web"),
    ];
    for (text, expected) in table {
        assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let table = [
        ("a\n{{ .map.b.c.d }}", "t:2: there is no .d of deep"),
        ("{{ .missing.x }}", "t:1: there is no .x of nothing"),
        ("{{ nosuch 1 }}", "t:1: nosuch: there is no such function of (a number)"),
        ("{{ if .a }}", "t:1: there is no end"),
        ("{{ end }}", "t:1: this belongs to no"),
        ("{{ .name", "t:1: the action has no end"),
        ("{{ \"x }}", "t:1: the string has no end"),
        ("{{ (.name }}", "t:1: a parenthesis is not closed"),
        ("{{ .name) }}", "t:1: a closing parenthesis"),
        ("{{ $x }}", "t:1: undefined variable $x"),
        ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", "t:1: undefined variable $x"),
        ("{{ .name \"x\" }}", "t:1: only a function takes arguments"),
        ("{{ required \"set a name\" .missing }}", "t:1: required: set a name"),
        ("{{ eq .name 1 }}", "t:1: eq: a string and a number cannot be compared"),
        ("{{ include \"gone\" . }}", "t:1: no template \"gone\""),
        (
            "\n{{ define \"d\" }}\n{{ include \"d\" . }}{{ end }}{{ include \"d\" . }}",
            "t:3: \"d\" includes itself for ever",
        ),
        ("{{ printf \"%d\" .name }}", "t:1: printf: %d does not fit a string"),
        ("{{ range .name }}{{ end }}", "t:1: range over web"),
        ("{{ break }}", "t:1: break and continue"),
        ("{{ | quote }}", "t:1: a command is missing"),
        ("{{/* a", "t:1: the comment has no end"),
    ];
    for (text, expected) in table {
        let error = render(text).expect_err(text);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn yaml_looks_like_helms_and_is_read_as_it_was() {
    let table = [
        (
            json!({"b": 1, "a": {"c": []}, "l": [{"x": 1, "y": [2]}, [3]]}),
            "a:\n  c: []\nb: 1\nl:\n- x: 1\n  \"y\":\n  - 2\n- - 3\n",
        ),
        (json!({}), "{}\n"),
        (
            json!({"t": "true", "n": "007", "e": "", "k": "a: b", "h": "a #b", "s": "*x", "p": "a:b"}),
            "e: \"\"\nh: 'a #b'\nk: 'a: b'\n\"n\": \"007\"\np: a:b\ns: '*x'\nt: \"true\"\n",
        ),
        (json!({"b": "one\ntwo\n", "c": "one\n\ntwo"}), "b: |\n  one\n  two\nc: |-\n  one\n\n  two\n"),
        (
            json!(["1.5", "1e3", "0x1f", "12:30", "2026-01-01", "on", ".5", "10.0.0.1", "-", "a\tb", "..."]),
            "- \"1.5\"\n- \"1e3\"\n- \"0x1f\"\n- \"12:30\"\n- \"2026-01-01\"\n- \"on\"\n- \".5\"\n- 10.0.0.1\n- '-'\n- \"a\\tb\"\n- '...'\n",
        ),
    ];
    for (value, expected) in table {
        assert_eq!(yaml::write(&value), expected);
        assert_eq!(serde_saphyr::from_str::<Value>(expected).unwrap(), value, "{expected}");
    }
}
