//! Tables of tokens.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::*;

fn rule(locations: Vec<Location>) -> Arc<JwtRule> {
    Arc::new(JwtRule {
        issuer: "me".into(),
        audiences: Vec::new(),
        keys: None,
        locations,
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        spaced: Vec::new(),
    })
}

#[test]
fn hardening_B186_a_token_stands_in_one_place() {
    let usual = rule(JwtRule::usual_locations());
    let own = rule(vec![Location::Header(HeaderName::from_static("x-token"), "JWT ".into())]);
    let cookie = rule(vec![Location::Cookie("session".into())]);
    let rules = [usual, own, cookie];
    let several = Err(TokenProblem::Several);
    for (lines, query, expected) in [
        (&[][..], "", Ok(vec![])),
        (&["authorization: Bearer a.b.c"], "", Ok(vec![("a.b.c", vec![0])])),
        (&["authorization: bearer  a.b.c"], "", Ok(vec![("a.b.c", vec![0])])),
        (&["authorization: BEARER\ta.b.c"], "", Ok(vec![("a.b.c", vec![0])])),
        (&["authorization: Bearer"], "", Ok(vec![("", vec![0])])),
        (&["authorization: Basic abc"], "", Ok(vec![])),
        (&["authorization: BearerX abc"], "", Ok(vec![])),
        (&["authorization: Bearer a", "authorization: Bearer b"], "", several.clone()),
        (&["authorization: Bearer a", "authorization: Bearer a"], "", several.clone()),
        (&["authorization: Basic x", "authorization: Bearer a"], "", several.clone()),
        (&["authorization: Bearer a"], "access_token=b", several.clone()),
        (&[], "x=1&access_token=a%2Eb", Ok(vec![("a.b", vec![0])])),
        (&[], "access_token=a&access_token=b", several.clone()),
        (&["x-token: JWT t"], "", Ok(vec![("t", vec![1])])),
        (&["x-token: t"], "", Ok(vec![])),
        (&["x-token: JWT t", "authorization: Bearer a"], "", Ok(vec![("a", vec![0]), ("t", vec![1])])),
        (&["x-token: JWT a", "authorization: Bearer a"], "", Ok(vec![("a", vec![0, 1])])),
        (&["cookie: a=1; session=s ;b"], "", Ok(vec![("s", vec![2])])),
        (&["cookie: session=s", "cookie: session=t"], "", several),
    ] {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let found = found(&rules, &headers, Some(query));
        let found = found.as_ref().map(|all| all.iter().map(|one| (&*one.text, one.rules.clone())).collect::<Vec<_>>());
        assert_eq!(found.map_err(|problem| *problem), expected, "{lines:?} {query}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_bytes(b"Bearer \xff").unwrap());
    assert_eq!(found_of(&rules, &headers), Err(TokenProblem::Form));
}

fn found_of(rules: &[Arc<JwtRule>], headers: &HeaderMap) -> Result<usize, TokenProblem> {
    found(rules, headers, None).map(|all| all.len())
}

fn joined(header: &str, payload: &str, signature: &str) -> String {
    format!("{}.{}.{signature}", BASE64.encode(header), BASE64.encode(payload))
}

#[test]
fn hardening_B185_a_token_is_three_parts_that_are_read_in_one_way() {
    use TokenProblem::{Critical, Form, Header, NoKey, Payload, Signature, TooLong};
    let good = r#"{"alg":"RS256","kid":"k","jku":"https://evil","jwk":{}}"#;
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for (token, expected) in [
        (joined(good, "{}", "AAAA"), Ok(())),
        (joined(good, r#"{"a":{"b":1,"b":2}}"#, "AAAA"), Err(Payload)),
        (joined(r#"{"alg":"RS256","alg":"none"}"#, "{}", "AAAA"), Err(Header)),
        (joined(r#"{"alg":"RS256","crit":["exp"]}"#, "{}", "AAAA"), Err(Critical)),
        (joined(r#"{"alg":1}"#, "{}", "AAAA"), Err(Header)),
        (joined("{}", "{}", "AAAA"), Err(Header)),
        (joined("[]", "{}", "AAAA"), Err(Header)),
        (joined(good, "1", "AAAA"), Err(Payload)),
        (joined(good, &deep, "AAAA"), Err(if deep.len() > LONGEST { TooLong } else { Payload })),
        (joined(good, &deep[..200], "AAAA"), Err(Payload)),
        (joined(good, "{}", ""), Err(Signature)),
        (joined(good, "{}", "AAA="), Err(Signature)),
        (joined(good, "{}", "A+/A"), Err(Signature)),
        (format!("{}.x", joined(good, "{}", "AAAA")), Err(Form)),
        ("a.b".to_owned(), Err(Form)),
        (String::new(), Err(Form)),
        ("a.b.c.d.e".to_owned(), Err(Form)),
        ("!.e30.AAAA".to_owned(), Err(Header)),
        ("e30=.e30.AAAA".to_owned(), Err(Header)),
        ("a".repeat(1 << 20), Err(TooLong)),
        (joined(&format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(300)), "{}", "AAAA"), Err(NoKey)),
        (joined(r#"{"alg":"RS256","kid":7}"#, "{}", "AAAA"), Err(NoKey)),
    ] {
        assert_eq!(Unverified::parse(&token).map(|_| ()), expected, "{token:.80}");
    }
    let token = joined(good, r#"{"iss":"me"}"#, "AAAA");
    let read = Unverified::parse(&token).unwrap();
    assert_eq!((&*read.algorithm, read.key.as_deref(), read.issuer()), ("RS256", Some("k"), Some("me")));
    assert_eq!(format!("{}.{}", read.signed, read.signature), token);
}

#[test]
fn hardening_B184_what_a_token_says_has_its_types() {
    use TokenProblem::{Audience, Early, Expired, Issuer, Payload, Time};
    let rule = JwtRule { audiences: vec!["shop".into()], ..(*rule(Vec::new())).clone() };
    let base = || json!({ "iss": "me", "sub": "u", "aud": "shop", "exp": 2_000 });
    let with = |changes: Value| {
        let Value::Object(mut payload) = base() else { panic!() };
        let Value::Object(changes) = changes else { panic!() };
        for (name, value) in changes {
            match value {
                Value::Null => drop(payload.remove(&name)),
                value => drop(payload.insert(name, value)),
            }
        }
        payload
    };
    for (changes, expected) in [
        (json!({}), Ok(())),
        (json!({ "exp": 941 }), Ok(())),
        (json!({ "exp": 940 }), Err(Expired)),
        (json!({ "exp": null }), Err(Time)),
        (json!({ "exp": "2000" }), Err(Time)),
        (json!({ "exp": 2000.5 }), Ok(())),
        (json!({ "exp": 1e300 }), Err(Time)),
        (json!({ "exp": -1 }), Err(Time)),
        (json!({ "exp": 0 }), Err(Expired)),
        (json!({ "exp": i64::MAX }), Ok(())),
        (json!({ "nbf": 1060 }), Ok(())),
        (json!({ "nbf": 1061 }), Err(Early)),
        (json!({ "nbf": "1" }), Err(Time)),
        (json!({ "iat": [] }), Err(Time)),
        (json!({ "iss": "me/" }), Err(Issuer)),
        (json!({ "iss": null }), Err(Issuer)),
        (json!({ "aud": null }), Err(Audience)),
        (json!({ "aud": ["a", "shop"] }), Ok(())),
        (json!({ "aud": ["a", 1, "shop"] }), Err(Audience)),
        (json!({ "aud": { "shop": 1 } }), Err(Audience)),
        (json!({ "aud": "https://shop/" }), Ok(())),
        (json!({ "aud": "shopping" }), Err(Audience)),
        (json!({ "sub": 1 }), Err(Payload)),
        (json!({ "sub": null }), Ok(())),
    ] {
        assert_eq!(Token::believed(with(changes.clone()), &rule, 1_000).map(|_| ()), expected, "{changes}");
    }
    let token = Token::believed(with(json!({ "n": 7, "deep": { "er": "x" }, "a": [1] })), &rule, 1_000).unwrap();
    assert_eq!(token.principal(), Some("me/u"));
    let output = |name: &str| token.output(name).map(|text| text.into_owned());
    assert_eq!(
        ["n", "deep.er", "sub", "a", "none"].map(output),
        [Some("7".into()), Some("x".into()), Some("u".into()), None, None]
    );
    let nameless = Token::believed(with(json!({ "sub": null })), &rule, 1_000).unwrap();
    assert_eq!(nameless.principal(), None);
}

#[test]
fn the_corpus_of_the_fuzzer_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/tokens");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        crate::fuzz::tokens(&std::fs::read(file).unwrap());
    }
}
