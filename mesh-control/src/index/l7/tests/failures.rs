//! VirtualServices: how long requests may take, what is tried again, what fails on purpose, what is copied, and other origins (VS-14 to VS-19).

use super::virtual_services::to_v3;
use super::*;

#[test]
fn features_VS_14_timeouts() {
    check(&[
        (&to_v3("timeout: 500ms"), &[("GET http://web/", "v3:80 within 500ms")]),
        (&to_v3("timeout: 0s"), &[("GET http://web/", "v3:80")]),
        (&to_v3("name: a"), &[("GET http://web/", "v3:80")]),
    ]);
}

#[test]
fn features_VS_15_retries() {
    use std::time::Duration;

    use mesh_core::l7::{Retries, RetryOn};
    let usual = Retries::default();
    for (written, expected) in [
        ("name: a", usual.clone()),
        ("retries: {attempts: 0}", Retries::none()),
        // proto3 has one value for both.
        ("retries: {}", Retries::none()),
        ("retries: {retryOn: 5xx, perTryTimeout: 2s}", Retries::none()),
        ("retries: {attempts: 3}", Retries { attempts: 3, ..usual.clone() }),
        (
            "retries: {attempts: 1, perTryTimeout: 2s}",
            Retries { attempts: 1, per_try_timeout: Some(Duration::from_secs(2)), ..usual.clone() },
        ),
        (
            "retries: {attempts: 2, retryOn: '5xx,503', backoff: 1s, retryIgnorePreviousHosts: false, retryRemoteLocalities: true}",
            Retries {
                on: RetryOn { events: RetryOn::ANY_5XX, grpc: 0, statuses: vec![503] },
                backoff: Duration::from_secs(1),
                elsewhere: false,
                remote_localities: true,
                ..usual.clone()
            },
        ),
        // What fails on purpose is not tried again.
        (
            "timeout: 1s, retries: {attempts: 3}, fault: {abort: {httpStatus: 500, percentage: {value: 100}}}",
            Retries::none(),
        ),
    ] {
        let found = mesh(&to_v3(written)).decide("GET http://web/", 1, |_, decision| {
            let handling = decision.unwrap().handling;
            assert_eq!(handling.timeout, None);
            handling.retries.clone()
        });
        assert_eq!(found, expected, "{written}");
    }
}

#[test]
fn features_VS_16_and_VS_17_faults() {
    check(&[
        (&to_v3("fault: {delay: {fixedDelay: 7s, percentage: {value: 100}}}"), &[("GET http://web/", "v3:80 wait 7s")]),
        (&to_v3("fault: {delay: {fixedDelay: 7s, percent: 100}}"), &[("GET http://web/", "v3:80 wait 7s")]),
        (&to_v3("fault: {delay: {fixedDelay: 7s}}"), &[("GET http://web/", "v3:80")]),
        (
            &to_v3("fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"),
            &[("GET http://web/", "v3:80 fail 418")],
        ),
        (
            &to_v3("fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}"),
            &[("GET http://web/", "v3:80 fail grpc 14")],
        ),
        (&to_v3("fault: {abort: {httpStatus: 500}}"), &[("GET http://web/", "v3:80")]),
    ]);
    let some = mesh(&to_v3("fault: {abort: {httpStatus: 500, percentage: {value: 25}}}")).shares("GET http://web/");
    assert!(some["v3:80 fail 500"].abs_diff(250) < 60, "{some:?}");
}

#[test]
fn features_VS_18_copies() {
    let v1 = "destination: {host: v1, port: {number: 80}}";
    check(&[
        (&to_v3("mirror: {host: v1, port: {number: 80}}"), &[("GET http://web/", "v3:80 copy v1:80")]),
        (
            &to_v3("mirror: {host: v1, port: {number: 80}}, mirrorPercentage: {value: 0}"),
            &[("GET http://web/", "v3:80")],
        ),
        (
            &to_v3("mirror: {host: v1, port: {number: 80}}, mirror_percent: 100"),
            &[("GET http://web/", "v3:80 copy v1:80")],
        ),
        (
            &to_v3(&format!(
                "mirrors: [{{{v1}}}, {{{v1}, percentage: {{value: 0}}}}, {{destination: {{host: none}}}}]"
            )),
            &[(
                "GET http://web/",
                "v3:80 copy v1:80,broken (there is no service and no ServiceEntry with the host none.shop.svc.cluster.local)",
            )],
        ),
    ]);
    let mesh = mesh(&to_v3("mirror: {host: v1, port: {number: 80}}, mirrorPercentage: {value: 40}"));
    assert!(mesh.shares("GET http://web/")["v3:80 copy v1:80"].abs_diff(400) < 60);
}

#[test]
fn features_VS_19_other_origins() {
    let cors = "corsPolicy: {allowOrigins: [{exact: 'https://a.com'}, {regex: 'https://[a-z]+[.]b[.]com'}], allowMethods: [GET, PUT], allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 24h, allowCredentials: true}";
    let ask = "access-control-request-method=PUT";
    let answer = "allow-credentials=true,allow-headers=x-a,allow-methods=GET, PUT,allow-origin=https://a.com,expose-headers=x-b,max-age=86400";
    check(&[
        (
            &to_v3(cors),
            &[
                ("GET http://web/", "v3:80 cors pass"),
                (&format!("OPTIONS http://web/ origin=https://a.com {ask}"), &format!("v3:80 cors answer {answer}")),
                (
                    "GET http://web/ origin=https://x.b.com",
                    "v3:80 cors add allow-credentials=true,allow-origin=https://x.b.com,expose-headers=x-b",
                ),
                ("GET http://web/ origin=https://evil.com", "v3:80 cors pass"),
                (&format!("OPTIONS http://web/ origin=https://evil.com {ask}"), "v3:80 cors pass"),
            ],
        ),
        (
            &to_v3("corsPolicy: {allowOrigins: [{exact: 'https://a.com'}], unmatchedPreflights: IGNORE}"),
            &[(&format!("OPTIONS http://web/ origin=https://evil.com {ask}"), "v3:80 cors answer ")],
        ),
    ]);
}
