//! Who has answered a request, in Envoy's words: `%RESPONSE_CODE_DETAILS%`. What this proxy decides is said where it does, the rest by flags. Used by `facts`.

use std::borrow::Cow;

use mesh_core::NamespacedName;

use super::Flags;

/// What flags say of it, the first one that there is.
const WORDS: [(&str, &str); 18] = [
    ("DC", "downstream_remote_disconnect"),
    ("FI", "fault_filter_abort"),
    ("NR", "route_not_found"),
    ("UH", "no_healthy_upstream"),
    ("UT", "response_timeout"),
    ("UF", "upstream_reset_before_response_started{connection_failure}"),
    ("UC", "upstream_reset_before_response_started{connection_termination}"),
    ("UO", "upstream_reset_before_response_started{overflow}"),
    ("UR", "upstream_reset_before_response_started{remote_reset}"),
    ("UAEX", "ext_authz_denied"),
    ("RLSE", "rate_limiter_error"),
    ("RL", "request_rate_limited"),
    ("UPE", "upstream_reset_before_response_started{protocol_error}"),
    ("NC", "cluster_not_found"),
    ("OM", "overload"),
    ("SI", "stream_idle_timeout"),
    ("DPE", "codec_error"),
    ("DF", "dns_resolution_failure"),
];

/// Who has answered, where its flags do not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Details {
    /// In Envoy's word.
    Word(&'static str),
    /// A policy that matches has denied it, or none has allowed it.
    Policy(Option<NamespacedName>),
    /// Its token is not believed, for that reason.
    Token(String),
}

impl Details {
    /// In Envoy's form, which has no spaces.
    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Word(word) => (*word).into(),
            Self::Policy(None) => "rbac_access_denied_matched_policy[none]".into(),
            Self::Policy(Some(NamespacedName { namespace, name })) => {
                format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]]").into()
            }
            Self::Token(why) => format!("jwt_authn_access_denied{{{}}}", why.replace(' ', "_")).into(),
        }
    }
}

/// Of a request that an endpoint has answered, or this proxy, for what was said.
pub(super) fn of(said: Option<&Details>, answered: bool, flags: Flags) -> Cow<'_, str> {
    let has = |word: &str| flags.has(Flags::of(word));
    if answered && !has("DC") && !has("UT") && !has("SI") {
        return Cow::from(if has("UC") {
            "upstream_reset_after_response_started{connection_termination}"
        } else {
            "via_upstream"
        });
    }
    if let Some(said) = said.filter(|_| !has("DC")) {
        return said.text();
    }
    let found = WORDS.iter().find(|(word, _)| has(word));
    found.map_or("direct_response", |(_, details)| *details).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_answered_is_said_in_envoys_words() {
        let policy = |name: &str| Some(Details::Policy(Some(name.parse().unwrap())));
        for (said, answered, flags, expected) in [
            (None, false, &[][..], "direct_response"),
            (None, true, &[], "via_upstream"),
            (None, true, &["DI"], "via_upstream"),
            (None, true, &["SI"], "stream_idle_timeout"),
            (None, true, &["UC"], "upstream_reset_after_response_started{connection_termination}"),
            (None, true, &["DC"], "downstream_remote_disconnect"),
            (None, false, &["UF", "URX"], "upstream_reset_before_response_started{connection_failure}"),
            (None, false, &["SI"], "stream_idle_timeout"),
            (Some(Details::Word("cors_response")), false, &[], "cors_response"),
            (Some(Details::Word("ext_authz_error")), false, &["UAEX"], "ext_authz_error"),
            (None, false, &["UAEX"], "ext_authz_denied"),
            (Some(Details::Policy(None)), false, &[], "rbac_access_denied_matched_policy[none]"),
            (policy("shop/nobody"), false, &[], "rbac_access_denied_matched_policy[ns[shop]-policy[nobody]]"),
            // Nobody was there to be told.
            (policy("shop/nobody"), false, &["DC"], "downstream_remote_disconnect"),
            (Some(Details::Token("Jwt is expired".into())), false, &[], "jwt_authn_access_denied{Jwt_is_expired}"),
        ] {
            let mut all = Flags::default();
            flags.iter().for_each(|flag| all.add(Flags::of(flag)));
            assert_eq!(of(said.as_ref(), answered, all), expected);
        }
    }
}
