//! Secrets, of which only certificates are read, and ConfigMaps, of which only roots are: for gateways and waypoints, by the names that others have for them. One that
//! is not good is there all the same, and says why not; what it said before does not stay in force, because whoever replaces a key wants the old one gone. No error shows what is in one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mesh_core::ArcStr;
use mesh_core::listener::{Credential, Secret as Hidden};
use mesh_transport::tls::pem::{self, PemError};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::{Key, Kind, Object, Read};
use crate::diagnosis::Problem;
use crate::yaml::node::{Node as Tree, Value};

/// The entries that are read, by what they hold: as Kubernetes has them, and as in Secrets that were made for Istio by hand.
const CHAIN: [&str; 2] = ["tls.crt", "cert"];
const KEY: [&str; 2] = ["tls.key", "key"];
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
const REVOKED: [&str; 2] = ["ca.crl", "crl"];
const STAPLE: [&str; 1] = ["tls.ocsp-staple"];

/// What is read of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// All of it.
    pub credential: Arc<Credential>,
    /// Whether it can be shown, or why not.
    pub shown: Result<(), ArcStr>,
    /// Whether anybody can be believed by it, or why not.
    pub believed: Result<(), ArcStr>,
}

/// What gateways and waypoints call what is in a Secret or ConfigMap.
pub fn named(holder: &Key) -> ArcStr {
    match holder.kind {
        Kind::Secret => format!("{}/{}", holder.namespace, holder.name).into(),
        // No Secret is called so.
        _ => holder.to_string().into(),
    }
}

/// Reads a Secret. It is always one: what it is good for is asked of it.
pub fn read(tree: &Tree) -> Read {
    let (credential, flaws) = match entries(tree, [("data", false), ("stringData", true)]) {
        Ok(entries) => {
            let part = |names: &[&str]| names.iter().find_map(|name| entries.get(*name)).cloned().unwrap_or_default();
            let credential = Credential {
                chain: part(&CHAIN),
                key: Hidden::new(part(&KEY)),
                roots: part(&ROOTS),
                revoked: part(&REVOKED),
                staple: part(&STAPLE),
            };
            let flaws = (shown(&credential), believed(&credential));
            (credential, flaws)
        }
        Err(why) => (Credential::default(), (Err(why.clone()), Err(why))),
    };
    let secret = Secret { credential: Arc::new(credential), shown: flaws.0, believed: flaws.1 };
    Read { outcome: Ok(Object::Secret(Arc::new(secret))), problems: Vec::<Problem>::new() }
}

/// Reads the roots of a ConfigMap, as [`read`] does those of a Secret.
pub fn read_bundle(tree: &Tree) -> Read {
    let (credential, believed) = match entries(tree, [("binaryData", false), ("data", true)]) {
        Ok(entries) => {
            let part = |name: &str| entries.get(name).cloned().unwrap_or_default();
            let credential = Credential { roots: part(ROOTS[0]), revoked: part(REVOKED[0]), ..Credential::default() };
            let flaw = believed(&credential);
            (credential, flaw)
        }
        Err(why) => (Credential::default(), Err(why)),
    };
    let shown = Err("a ConfigMap has no key to show".into());
    let bundle = Secret { credential: Arc::new(credential), shown, believed };
    Read { outcome: Ok(Object::Secret(Arc::new(bundle))), problems: Vec::<Problem>::new() }
}

/// What is in some fields, each as text or in base64: a later one counts more.
fn entries(tree: &Tree, fields: [(&str, bool); 2]) -> Result<BTreeMap<String, Bytes>, ArcStr> {
    let mut all = BTreeMap::new();
    for (field, is_text) in fields {
        let entries = match tree.get(field).map(|node| &node.value) {
            None | Some(Value::Null) => continue,
            Some(Value::Map(entries)) => entries,
            Some(other) => return Err(format!("`{field}` is {} and no mapping", other.kind()).into()),
        };
        for entry in entries {
            let is_read = [&CHAIN[..], &KEY, &ROOTS, &REVOKED, &STAPLE].iter().any(|n| n.contains(&&*entry.key));
            if !is_read {
                continue;
            }
            let Some(text) = entry.node.as_str() else {
                return Err(format!("{} is {} and no text", entry.key, entry.node.value.kind()).into());
            };
            // An API server writes no line breaks, but people do.
            let plain = || text.chars().filter(|c| !c.is_ascii_whitespace()).collect::<String>();
            let bytes = match is_text {
                true => Bytes::copy_from_slice(text.as_bytes()),
                false => STANDARD.decode(plain()).map_err(|_| format!("{} is no base64", entry.key))?.into(),
            };
            all.insert(entry.key.clone(), bytes);
        }
    }
    Ok(all)
}

/// Whether the certificate is one and the key is its own.
fn shown(credential: &Credential) -> Result<(), ArcStr> {
    if credential.chain.is_empty() || credential.key.expose().is_empty() {
        return Err(match credential.chain.is_empty() {
            true => "it has no tls.crt".into(),
            false => "it has no tls.key".into(),
        });
    }
    let chain = pem::certificates(&credential.chain).map_err(|why| said(why, "certificate", "tls.crt"))?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.expose()).map_err(|_| "there is no key in its tls.key")?;
    let key = default_provider().key_provider.load_private_key(key);
    let key = key.map_err(|_| "its tls.key is of no kind that is used: RSA, ECDSA and Ed25519 are")?;
    if x509_parser::parse_x509_certificate(&chain[0]).is_err() {
        return Err("its tls.crt is no certificate".into());
    }
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => Err("its tls.key is not that of its tls.crt".into()),
    }
}

/// Whether there is anybody to be believed.
fn believed(credential: &Credential) -> Result<(), ArcStr> {
    if credential.roots.is_empty() {
        return Err("it has no ca.crt".into());
    }
    pem::add_roots(&credential.roots, &mut RootCertStore::empty()).map_err(|why| said(why, "certificate", "ca.crt"))?;
    pem::revoked(&credential.revoked).map(drop).map_err(|why| said(why, "list", "ca.crl"))
}

fn said(why: PemError, what: &str, entry: &str) -> ArcStr {
    match why {
        PemError::Malformed => format!("its {entry} is no PEM").into(),
        PemError::Empty => format!("there is no {what} in its {entry}").into(),
    }
}

/// Secrets and ConfigMaps, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Secrets {
    all: BTreeMap<Key, Arc<Secret>>,
    /// Only some are asked for, and of these it is known that they are not there, or why they cannot be had.
    asked: Option<Asked>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Asked {
    absent: BTreeSet<Key>,
    failing: BTreeMap<Key, ArcStr>,
}

/// What is known of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<'a> {
    /// It is there.
    Here(&'a Arc<Secret>),
    /// It is not.
    Missing,
    /// It cannot be asked for; why.
    Failing(&'a ArcStr),
    /// Nothing was heard of it yet.
    Unknown,
}

impl Secrets {
    /// Of which only some are asked for; what was not heard of is not known.
    pub fn asked() -> Self {
        Self { asked: Some(Asked::default()), ..Self::default() }
    }

    /// There is this one.
    pub fn insert(&mut self, name: Key, secret: Arc<Secret>) {
        self.forget(&name);
        self.all.insert(name, secret);
    }

    /// There is none of that name.
    pub fn remove(&mut self, name: &Key) {
        self.forget(name);
        if let Some(asked) = &mut self.asked {
            asked.absent.insert(name.clone());
        }
    }

    /// It cannot be asked for. If it was there it still is.
    pub fn fail(&mut self, name: &Key, why: ArcStr) {
        if let (Some(asked), false) = (&mut self.asked, self.all.contains_key(name)) {
            asked.failing.insert(name.clone(), why);
        }
    }

    /// Nobody asks for it any more.
    pub fn forget(&mut self, name: &Key) {
        self.all.remove(name);
        if let Some(asked) = &mut self.asked {
            asked.absent.remove(name);
            asked.failing.remove(name);
        }
    }

    /// What is known of one.
    pub fn get(&self, name: &Key) -> Found<'_> {
        match (self.all.get(name), &self.asked) {
            (Some(secret), _) => Found::Here(secret),
            (None, None) => Found::Missing,
            (None, Some(asked)) if asked.absent.contains(name) => Found::Missing,
            (None, Some(asked)) => asked.failing.get(name).map_or(Found::Unknown, Found::Failing),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::*;
    use crate::yaml::node::parse;

    fn made() -> (String, String) {
        let Made { cert, signing_key } = generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let all: Vec<String> =
            entries.iter().map(|(key, value)| format!("{key:?}: {:?}", STANDARD.encode(value))).collect();
        of(&format!("data: {{{}}}", all.join(", ")))
    }

    fn of(text: &str) -> Secret {
        match read(&parse(text).unwrap()).outcome {
            Ok(Object::Secret(secret)) => (*secret).clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_secret_is_good_for() {
        let ((cert, key), (other, _)) = (made(), made());
        let two = format!("{cert}{other}");
        for (entries, shown, believed) in [
            (vec![("tls.crt", &*cert), ("tls.key", &key)], "", "it has no ca.crt"),
            (vec![("tls.crt", &two), ("tls.key", &key), ("ca.crt", &other)], "", ""),
            (vec![("cert", &cert), ("key", &key), ("cacert", &two)], "", ""),
            (vec![("cacert", &two)], "it has no tls.crt", ""),
            (vec![("tls.crt", &cert)], "it has no tls.key", "it has no ca.crt"),
            (vec![("tls.crt", &cert), ("tls.key", "")], "it has no tls.key", "it has no ca.crt"),
            (
                vec![("tls.crt", &other), ("tls.key", &key)],
                "its tls.key is not that of its tls.crt",
                "it has no ca.crt",
            ),
            (
                vec![("tls.crt", "Hello world"), ("tls.key", &key), ("ca.crt", "Hello")],
                "there is no certificate in its tls.crt",
                "there is no certificate in its ca.crt",
            ),
            (vec![("tls.crt", &cert), ("tls.key", &cert)], "there is no key in its tls.key", "it has no ca.crt"),
        ] {
            let secret = secret(&entries);
            let text = |outcome: &Result<(), ArcStr>| outcome.as_ref().err().cloned().unwrap_or_default();
            assert_eq!((&*text(&secret.shown), &*text(&secret.believed)), (shown, believed), "{entries:?}");
        }
    }

    #[test]
    fn features_GW_5_who_is_revoked_and_what_is_stapled_is_read_of_both_kinds() {
        use rcgen::{CertificateParams, CertificateRevocationListParams, Issuer, KeyPair, SerialNumber};
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = ca.self_signed(&key).unwrap().pem();
        let day = |year| rcgen::date_time_ymd(year, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: day(2026),
            next_update: day(2036),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(&ca, &key)).unwrap().pem().unwrap();
        let bundle = |entry: &str, text: &str| {
            let text = format!("data: {{ca.crt: {root:?}, {entry}: {text:?}}}");
            match read_bundle(&parse(&text).unwrap()).outcome {
                Ok(Object::Secret(secret)) => (*secret).clone(),
                other => panic!("{other:?}"),
            }
        };
        for read in [
            secret(&[("ca.crt", &root), ("ca.crl", &list)]),
            secret(&[("cacert", &root), ("crl", &list)]),
            bundle("ca.crl", &list),
        ] {
            assert_eq!((&*read.credential.revoked, &read.believed), (list.as_bytes(), &Ok(())), "{read:?}");
        }
        // A list that is none: nobody is believed, rather than everybody of the CA.
        for read in [
            secret(&[("ca.crt", &root), ("ca.crl", "Hello")]),
            secret(&[("cacert", &root), ("crl", &root)]),
            bundle("ca.crl", "Hello"),
        ] {
            assert_eq!(read.believed.unwrap_err(), "there is no list in its ca.crl");
        }
        let stapled = secret(&[("tls.ocsp-staple", "stapled")]);
        assert_eq!(&*stapled.credential.staple, b"stapled");
    }

    #[test]
    fn what_cannot_be_read_says_where_and_not_what() {
        for (text, expected) in [
            ("data: {tls.crt: 'hunter2!'}", "tls.crt is no base64"),
            ("data: {tls.key: 12345}", "tls.key is a number and no text"),
            ("data: hunter2", "`data` is a string and no mapping"),
        ] {
            let secret = of(text);
            assert_eq!(secret.shown, Err(expected.into()), "{text}");
            assert!(!format!("{secret:?}").contains("hunter2") && !format!("{secret:?}").contains("12345"), "{text}");
        }
        let (cert, key) = made();
        let plain = of(&format!("stringData: {{tls.crt: {cert:?}, tls.key: {key:?}}}\ndata: {{password: '!'}}"));
        assert_eq!(plain.shown, Ok(()));
        let inner: String = key.lines().nth(1).unwrap().to_owned();
        assert!(!format!("{plain:?}").contains(&inner), "a key has no text");
    }

    #[test]
    fn features_GA_of_a_config_map_only_roots_are_read() {
        let (cert, key) = made();
        let bundle = |text: &str| match read_bundle(&parse(text).unwrap()).outcome {
            Ok(Object::Secret(bundle)) => (*bundle).clone(),
            other => panic!("{other:?}"),
        };
        let good = bundle(&format!("data: {{ca.crt: {cert:?}, tls.crt: {cert:?}, tls.key: {key:?}}}"));
        assert_eq!((good.believed, good.shown.is_err()), (Ok(()), true));
        assert!(good.credential.chain.is_empty() && good.credential.key.expose().is_empty());
        assert_eq!(bundle(&format!("binaryData: {{ca.crt: {}}}", STANDARD.encode(&cert))).believed, Ok(()));
        for (text, expected) in [
            ("{}", "it has no ca.crt"),
            ("data: {}", "it has no ca.crt"),
            ("data: {ca.crt: ''}", "it has no ca.crt"),
            ("data: {ca.pem: x}", "it has no ca.crt"),
            ("data: {ca.crt: rubbish}", "there is no certificate in its ca.crt"),
            ("data: {ca.crt: 5}", "ca.crt is a number and no text"),
            ("binaryData: {ca.crt: '!'}", "ca.crt is no base64"),
            ("data: [a]", "`data` is a list and no mapping"),
        ] {
            assert_eq!(bundle(text).believed, Err(expected.into()), "{text}");
        }
    }

    #[test]
    fn what_was_not_heard_of_is_missing_only_where_all_is_heard() {
        let name = Key { kind: Kind::Secret, namespace: "shop".into(), name: "a".into() };
        let mut all = Secrets::default();
        assert_eq!(all.get(&name), Found::Missing);
        all.insert(name.clone(), Arc::new(of("data: {}")));
        assert!(matches!(all.get(&name), Found::Here(_)));

        let mut asked = Secrets::asked();
        assert_eq!(asked.get(&name), Found::Unknown);
        asked.fail(&name, "403".into());
        assert_eq!(asked.get(&name), Found::Failing(&"403".into()));
        asked.remove(&name);
        assert_eq!(asked.get(&name), Found::Missing);
        asked.insert(name.clone(), Arc::new(of("data: {}")));
        asked.fail(&name, "403".into());
        assert!(matches!(asked.get(&name), Found::Here(_)), "it stays as it was");
        asked.forget(&name);
        assert_eq!(asked.get(&name), Found::Unknown);
    }
}
