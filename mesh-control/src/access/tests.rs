//! Tokens that are checked by the API server's keys: every trick on the format, on the keys, and on what a token says of its pod.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use mesh_core::ArcStr;
use serde_json::{Value as Json, json};

use super::keys::KeySet;
use super::token::TokenError::{self, *};
use crate::index::{AgentPod, View};

const ISSUER: &[u8] = br#"{"issuer":"https://kubernetes.default.svc","jwks_uri":"http://169.254.169.254/keys"}"#;
const NOW: i64 = 1_800_000_000;

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer's key of each kind.
struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Self {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), ec }
    }

    fn rsa_jwk(&self) -> Json {
        let public = self.rsa.public_key();
        let (n, e) = (public.modulus(), public.exponent());
        json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "r",
            "n": encode(n.big_endian_without_leading_zero()), "e": encode(e.big_endian_without_leading_zero()) })
    }

    fn ec_jwk(&self) -> Json {
        let point = self.ec.public_key().as_ref();
        json!({ "kty": "EC", "use": "sig", "alg": "ES256", "kid": "e", "crv": "P-256",
            "x": encode(&point[1..33]), "y": encode(&point[33..]) })
    }

    fn set(&self) -> KeySet {
        read(&[self.rsa_jwk(), self.ec_jwk()]).unwrap()
    }

    fn rsa(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", encode(signature))
    }

    fn ec(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.ec.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature))
    }
}

fn read(keys: &[Json]) -> Result<KeySet, &'static str> {
    KeySet::read(ISSUER, json!({ "keys": keys }).to_string().as_bytes())
}

const RSA: &str = r#"{"alg":"RS256","kid":"r"}"#;
const EC: &str = r#"{"alg":"ES256","kid":"e"}"#;

/// What Kubernetes writes for the agent of node n1.
fn claims() -> Json {
    json!({
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:undermesh-system:mesh-agent",
        "aud": ["undermesh"],
        "exp": NOW + 3600, "nbf": NOW, "iat": NOW, "jti": "1",
        "kubernetes.io": {
            "namespace": "undermesh-system",
            "serviceaccount": { "name": "mesh-agent", "uid": "s" },
            "pod": { "name": "mesh-agent-1", "uid": "p" },
            "node": { "name": "n1", "uid": "n" },
            "warnafter": NOW + 1800,
        },
    })
}

fn with(pointer: &str, value: Json) -> String {
    let mut claims = claims();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    claims.pointer_mut(parent).unwrap()[key] = value;
    claims.to_string()
}

fn without(pointer: &str) -> String {
    let mut claims = claims();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    claims.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    claims.to_string()
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
}

fn vouch(set: &KeySet, token: &str) -> Result<ArcStr, TokenError> {
    set.vouch(token, &["undermesh".to_owned()], at(NOW)).map(|vouched| vouched.pod.node)
}

#[test]
fn tokens_of_the_api_server_are_known_by_its_keys() {
    let issuer = Issuer::new();
    let set = issuer.set();
    assert_eq!(set.len(), 2);
    let claims = claims().to_string();
    for token in [issuer.rsa(RSA, &claims), issuer.ec(EC, &claims)] {
        let vouched = set.vouch(&token, &["a".into(), "undermesh".into()], at(NOW)).unwrap();
        assert_eq!(vouched.bearer.node, Some(("n1".into(), Some("n".into()))));
        assert_eq!(vouched.expires, NOW + 3600);
        assert_eq!(vouched.uid, "p");
    }
}

#[test]
fn hardening_B182_B183_the_key_says_how_it_is_checked() {
    let issuer = Issuer::new();
    let set = issuer.set();
    let claims = claims().to_string();
    let (rsa, ec) = (issuer.rsa(RSA, &claims), issuer.ec(EC, &claims));
    let header = |header: &str| issuer.rsa(header, &claims);
    let hmac = |secret: &[u8]| {
        let signed = format!("{}.{}", encode(r#"{"alg":"HS256","kid":"r"}"#), encode(&claims));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        format!("{signed}.{}", encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes())))
    };
    let public = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(issuer.rsa.public_key()).unwrap();
    let (signed, _) = ec.rsplit_once('.').unwrap();
    let zero = format!("{signed}.{}", encode([0; 64]));
    let mut last = rsa.clone();
    last.pop();
    let other = Issuer::new();
    let jwk = other.rsa_jwk();
    for (what, token, error) in [
        ("none", header(r#"{"alg":"none","kid":"r"}"#), Key),
        ("none, unsigned", format!("{}.{}.", encode(r#"{"alg":"none","kid":"r"}"#), encode(&claims)), Key),
        ("None", header(r#"{"alg":"None","kid":"r"}"#), Key),
        ("no algorithm", header(r#"{"kid":"r"}"#), Malformed),
        ("HMAC by the public key", hmac(public.as_ref()), Key),
        ("HMAC by its numbers", hmac(issuer.rsa_jwk()["n"].as_str().unwrap().as_bytes()), Key),
        ("another algorithm of the family", header(r#"{"alg":"PS256","kid":"r"}"#), Key),
        ("a stronger one than the key's", header(r#"{"alg":"RS512","kid":"r"}"#), Key),
        ("of the other key", issuer.rsa(EC, &claims), Signature),
        ("the other key's name and algorithm", header(r#"{"alg":"ES256","kid":"r"}"#), Key),
        ("zero", zero, Signature),
        ("cut", last, Signature),
        ("of another issuer", other.rsa(RSA, &claims), Signature),
        ("no name", header(r#"{"alg":"RS256"}"#), Key),
        ("unknown name", header(r#"{"alg":"RS256","kid":"x"}"#), Key),
        ("a path", header(r#"{"alg":"RS256","kid":"../../dev/null"}"#), Key),
        ("a statement", header(r#"{"alg":"RS256","kid":"r' OR 1=1 --"}"#), Key),
        ("a long name", header(&format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "r".repeat(64 << 10))), Key),
        ("a name that is none", header(r#"{"alg":"RS256","kid":1}"#), Malformed),
        ("extension", header(r#"{"alg":"RS256","kid":"r","crit":["b64"],"b64":false}"#), Malformed),
        ("brings a key", other.rsa(&json!({ "alg": "RS256", "kid": "r", "jwk": jwk }).to_string(), &claims), Signature),
        ("names a place", other.rsa(r#"{"alg":"RS256","kid":"r","jku":"http://127.0.0.1/"}"#, &claims), Signature),
        ("two algorithms", header(r#"{"alg":"none","alg":"RS256","kid":"r"}"#), Malformed),
    ] {
        assert_eq!(vouch(&set, &token), Err(error), "{what}");
    }
    // What is not read does not matter either.
    assert!(
        vouch(&set, &header(r#"{"alg":"RS256","kid":"r","typ":"at+jwt","x5u":"http://a","jku":"http://b"}"#)).is_ok()
    );
    // The signature that was refused as "of another issuer" is a good one.
    let (signed, signature) =
        other.rsa(RSA, &claims).rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let key = UnparsedPublicKey::new(&aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256, other.rsa.public_key());
    key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
}

#[test]
fn hardening_B184_claims_have_types_and_times() {
    let issuer = Issuer::new();
    let set = issuer.set();
    let text = claims().to_string();
    let raw = |field: &str, value: &str| {
        text.replace(&format!("\"{field}\":{}", claims()[field]), &format!("\"{field}\":{value}"))
    };
    for (what, claims, error) in [
        ("exp as text", with("/exp", json!((NOW + 9).to_string())), Malformed),
        ("exp as a fraction", with("/exp", json!(NOW as f64 + 9.5)), Malformed),
        ("exp without end", raw("exp", "1e400"), Malformed),
        ("exp below zero", with("/exp", json!(-1)), Expired),
        ("exp of nothing", with("/exp", Json::Null), Malformed),
        ("no exp", without("/exp"), Malformed),
        ("two exp", raw("exp", &format!("1,\"exp\":{}", NOW + 9)), Malformed),
        ("over", with("/exp", json!(NOW)), Expired),
        ("not yet", with("/nbf", json!(NOW + 61)), Expired),
        ("nbf as text", with("/nbf", json!("0")), Malformed),
        ("no nbf", without("/nbf"), Malformed),
        ("issued later", with("/iat", json!(NOW + 61)), Expired),
        ("no iat", without("/iat"), Malformed),
        ("aud of nobody", with("/aud", json!([])), Audience),
        ("aud of others", with("/aud", json!(["vault", "undermesh2"])), Audience),
        ("aud as an object", with("/aud", json!({ "undermesh": true })), Malformed),
        ("no aud", without("/aud"), Malformed),
        ("iss with a slash", with("/iss", json!("https://kubernetes.default.svc/")), Issuer),
        ("iss in a list", with("/iss", json!(["https://kubernetes.default.svc"])), Malformed),
        ("no iss", without("/iss"), Malformed),
        ("a list", "[]".into(), Malformed),
        ("deep", "[".repeat(10_000), Malformed),
        (
            "deep, beside",
            with("/x", json!(1)).replace("\"x\":1", &format!("\"x\":{}1{}", "[".repeat(10_000), "]".repeat(10_000))),
            Malformed,
        ),
    ] {
        let found = vouch(&set, &issuer.rsa(RSA, &claims));
        // What is not read may be as deep as it likes, as long as nothing comes of it.
        assert!(found == Err(error) || what == "deep, beside", "{what}: {found:?}");
    }
    for (what, claims) in [
        ("the last second", with("/exp", json!(NOW + 1))),
        ("a clock ahead", with("/nbf", json!(NOW + 60))),
        ("the same", with("/iat", json!(NOW + 60))),
        ("one of several", with("/aud", json!(["vault", "undermesh"]))),
    ] {
        assert!(vouch(&set, &issuer.rsa(RSA, &claims)).is_ok(), "{what}");
    }
}

#[test]
fn hardening_B185_what_is_no_token() {
    let issuer = Issuer::new();
    let set = issuer.set();
    let good = issuer.rsa(RSA, &claims().to_string());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, claims, signature) = (parts[0], parts[1], parts[2]);
    let padded = URL_SAFE.encode(format!("{} ", claims_text()));
    for (what, token, error) in [
        ("empty", String::new(), Malformed),
        ("one part", header.to_owned(), Malformed),
        ("two parts", format!("{header}.{claims}"), Malformed),
        ("four parts", format!("{good}.{signature}"), Malformed),
        ("encrypted", format!("{good}.a.b"), Malformed),
        ("empty header", format!(".{claims}.{signature}"), Malformed),
        ("empty claims", format!("{header}..{signature}"), Signature),
        ("no signature", format!("{header}.{claims}."), Signature),
        ("padding", format!("{header}.{claims}.{signature}="), Signature),
        ("padded claims", format!("{header}.{padded}=.{signature}"), Signature),
        ("other alphabet", format!("{header}.{claims}.{}", signature.replace(['-', '_'], "+")), Signature),
        ("blank", format!("{header}.{claims}. {signature}"), Signature),
        ("line", format!("{good}\n"), Signature),
        ("large", format!("{header}.{}.{signature}", "A".repeat(1 << 20)), Signature),
    ] {
        assert_eq!(vouch(&set, &token), Err(error), "{what}");
    }
    assert!(vouch(&set, &good).is_ok());
}

fn claims_text() -> String {
    claims().to_string()
}

#[test]
fn hardening_B187_key_sets_that_are_none() {
    let issuer = Issuer::new();
    let (rsa, ec) = (issuer.rsa_jwk(), issuer.ec_jwk());
    let changed = |key: &Json, field: &str, value: Json| {
        let mut key = key.clone();
        key[field] = value;
        key
    };
    let none = "it holds no key that tokens can be checked by";
    for (what, keys, why) in [
        ("no key", vec![], none),
        (
            "10,000 keys",
            (0..10_000).map(|n| changed(&rsa, "kid", json!(n.to_string()))).collect(),
            "there are too many keys",
        ),
        ("private", vec![changed(&rsa, "d", json!("AQAB"))], none),
        ("secret", vec![json!({ "kty": "oct", "kid": "r", "k": "AAAA", "alg": "HS256" })], none),
        ("RSA for HMAC", vec![changed(&rsa, "alg", json!("HS256"))], none),
        ("RSA for none", vec![changed(&rsa, "alg", json!("none"))], none),
        ("the other curve's algorithm", vec![changed(&ec, "alg", json!("ES384"))], none),
        ("a curve nobody knows", vec![changed(&ec, "crv", json!("P-192"))], none),
        ("for encryption", vec![changed(&rsa, "use", json!("enc"))], none),
        (
            "without a name",
            vec![{
                let mut key = rsa.clone();
                key.as_object_mut().unwrap().remove("kid");
                key
            }],
            none,
        ),
        ("one name for two", vec![rsa.clone(), changed(&ec, "kid", json!("r"))], none),
        ("three of a name", vec![rsa.clone(), rsa.clone(), rsa.clone()], none),
        ("not base64", vec![changed(&rsa, "n", json!("+/="))], none),
        ("text", vec![json!("key")], none),
    ] {
        assert_eq!(read(&keys).map(drop), Err(why), "{what}");
    }
    for (what, issuer, set) in [
        ("HTML", "<html>", "<html>"),
        ("nothing", "", ""),
        ("no issuer", "{}", r#"{"keys":[]}"#),
        ("empty issuer", r#"{"issuer":""}"#, r#"{"keys":[]}"#),
        ("issuers", r#"{"issuer":["a"]}"#, r#"{"keys":[]}"#),
        ("no keys", r#"{"issuer":"a"}"#, r#"{"keyz":[]}"#),
        ("keys that are none", r#"{"issuer":"a"}"#, r#"{"keys":{}}"#),
    ] {
        assert!(KeySet::read(issuer.as_bytes(), set.as_bytes()).is_err(), "{what}");
    }
    // Of several the good ones are kept; numbers that are no key verify nothing.
    let point = changed(&changed(&ec, "x", json!(encode([0; 32]))), "kid", json!("bad"));
    let set = read(&[json!(1), changed(&rsa, "use", json!("enc")), point, ec.clone()]).unwrap();
    assert!(vouch(&set, &issuer.ec(EC, &claims_text())).is_ok());
    assert_eq!(vouch(&set, &issuer.ec(r#"{"alg":"ES256","kid":"bad"}"#, &claims_text())), Err(Signature));
    assert_eq!(vouch(&set, &issuer.rsa(RSA, &claims_text())), Err(Key));
}

#[test]
fn hardening_B110_B111_a_token_is_worth_what_its_pod_is() {
    let issuer = Issuer::new();
    let set = issuer.set();
    let pod = AgentPod {
        namespace: "undermesh-system".into(),
        name: "mesh-agent-1".into(),
        account: "mesh-agent".into(),
        node: "n1".into(),
    };
    let view = |uid: &str, pod: &AgentPod| View { agents: [(uid.into(), pod.clone())].into(), ..View::default() };
    let here = view("p", &pod);
    let stands = |claims: &str, view: &View| {
        let vouched = set.vouch(&issuer.rsa(RSA, claims), &["undermesh".to_owned()], at(NOW));
        vouched.map(|vouched| vouched.caller(&[("undermesh-system".into(), "mesh-agent".into())], view).is_ok())
    };
    let good = claims_text();
    assert_eq!(stands(&good, &here), Ok(true));
    for (what, view) in [
        ("deleted", View::default()),
        ("made again", view("q", &pod)),
        ("of another name", view("p", &AgentPod { name: "other".into(), ..pod.clone() })),
        ("of another account", view("p", &AgentPod { account: "other".into(), ..pod.clone() })),
        ("in another namespace", view("p", &AgentPod { namespace: "shop".into(), ..pod.clone() })),
        ("elsewhere", view("p", &AgentPod { node: "n2".into(), ..pod.clone() })),
    ] {
        assert_eq!(stands(&good, &view), Ok(false), "{what}");
    }
    let bound = "/kubernetes.io";
    for (what, claims, found) in [
        ("no binding", without(bound), Err(Malformed)),
        ("no pod", without(&format!("{bound}/pod")), Err(Unbound)),
        ("a pod without uid", without(&format!("{bound}/pod/uid")), Err(Unbound)),
        ("an empty uid", with(&format!("{bound}/pod/uid"), json!("")), Err(Unbound)),
        ("no node", without(&format!("{bound}/node")), Err(Unbound)),
        ("another node", with(&format!("{bound}/node/name"), json!("n2")), Ok(false)),
        ("another subject", with("/sub", json!("system:serviceaccount:shop:mesh-agent")), Err(Account)),
        ("another account", with(&format!("{bound}/serviceaccount/name"), json!("web")), Err(Account)),
        ("a user", with("/sub", json!("admin")), Err(Account)),
    ] {
        assert_eq!(stands(&claims, &here), found, "{what}");
    }
}
