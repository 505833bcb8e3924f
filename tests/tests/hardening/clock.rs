//! The wall clock jumps or stands still, everywhere or on one node: row F44. What is valid follows it, and nothing else does.
use crate::pair::{Pair, SOON, TOKEN, let_run};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Capture, Lab, LabConfig, Need, Node, PodSpec, eventually, in_lab, span, until};
use std::time::Duration;

/// Longer than a certificate of the default lifetime is valid.
const DAY_LATER: &str = "+86460";
const DAY_BEFORE: &str = "-86400";
/// Longer than the root is.
const TEN_YEARS_LATER: &str = "+315446400";
/// A renewal may wait for the token of its node to be renewed, and for its turn.
const RENEWAL: Duration = Duration::from_secs(20);

/// Runs a test that sets clocks; binaries that were built for release do not let it.
fn with_clocks(test: impl FnOnce() -> Result<()>) -> Result<()> {
    if !cfg!(debug_assertions) {
        eprintln!("SKIPPED: clocks can be set in debug builds only");
        return Ok(());
    }
    in_lab(Need::Mesh, test)
}

/// How many certificates have been made.
fn issued(lab: &Lab) -> Result<f64> {
    Ok(lab.control.metrics()?.sum("citadel_server_success_cert_issuance_count", &[]))
}

/// What a node says of the certificate of one service account: its serial number, and what went wrong last.
fn certificate(node: &Node, account: &str) -> Result<(Option<String>, String)> {
    let dump: serde_json::Value = serde_json::from_str(&node.agent()?.admin("/config_dump")?.body)?;
    let all = dump["certificates"].as_array().context("certificates")?;
    let end = format!("/sa/{account}");
    let one = all.iter().find(|c| c["identity"].as_str().is_some_and(|id| id.ends_with(&end)));
    let one = one.with_context(|| format!("no identity {account}"))?;
    let serial = one["certChain"][0]["serialNumber"].as_str().map(str::to_owned);
    Ok((serial, one["lastError"].as_str().unwrap_or_default().to_owned()))
}

/// A pod that comes now gets through to the server: two handshakes and two certificates that everybody takes for valid.
fn newcomer_is_served(pair: &Pair, name: &str) -> Result<()> {
    let pod = pair.lab.add_pod(PodSpec::new(name).service_account(name))?;
    pair.lab.enrol(&pod)?;
    eventually(&format!("the first exchange of {name}"), RENEWAL, || {
        let code = pair.send_from(&pod, "5")?;
        ensure!(code == 0, "it ended with code {code}");
        Ok(())
    })
}

#[test]
fn hardening_F44_the_clock_of_the_mesh_jumps_and_connections_go_on() -> Result<()> {
    with_clocks(|| {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        for n in 1..=4 {
            let name = format!("idle-{n}");
            let idle = lab.add_pod(PodSpec::new(&name).service_account(&name).node(1 + n % 2))?;
            lab.enrol(&idle)?;
        }
        let mut identities = 6.0;
        until("certificates of all", RENEWAL, || issued(lab).is_ok_and(|n| n == identities))?;
        let serial =
            || Ok::<_, anyhow::Error>([certificate(lab.node(1), "client")?.0, certificate(lab.node(2), "server")?.0]);
        let load = pair.patient(20, 10)?;

        for (jump, all_are_renewed) in [(DAY_LATER, false), (DAY_BEFORE, true)] {
            for (shows, name) in [(Some(jump), "during"), (None, "after")] {
                let (before, old) = (issued(lab)?, serial()?);
                match shows {
                    Some(shows) => lab.clock.set(shows)?,
                    None => lab.clock.set_right()?,
                }
                let wanted = all_are_renewed && shows.is_some();
                if wanted {
                    // Nobody would accept any of them, now or in the hours to come.
                    until("renewal of each", RENEWAL, || issued(lab).is_ok_and(|n| n >= before + identities))?;
                }
                if shows.is_some() {
                    eventually("renewal of both ends", RENEWAL, || {
                        let now = serial()?;
                        ensure!(now.iter().zip(&old).all(|(now, old)| now.is_some() && now != old), "{old:?}, {now:?}");
                        Ok(())
                    })?;
                }
                newcomer_is_served(&pair, &format!("{name}{}", jump.replace('+', "-")))?;
                let_run(span(Duration::from_secs(3), Duration::from_secs(600)));
                let made = issued(lab)? - before;
                identities += 1.0;
                ensure!(made <= identities, "{made} certificates for {identities} identities, {name} {jump}");
            }
        }
        load.ended()?.flawless()
    })
}

#[test]
fn hardening_F44_after_the_end_of_the_root_everything_is_closed_and_recovers() -> Result<()> {
    with_clocks(|| {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        pair.serves()?;
        let long = pair.hold()?;
        let before = issued(lab)?;
        let capture = Capture::start(&lab.fabric, &[TOKEN])?;

        lab.clock.set(TEN_YEARS_LATER)?;
        eventually("the reason in the dump", RENEWAL, || {
            let code = pair.send()?;
            ensure!(code != 0, "a connection without a valid certificate was served");
            let (serial, error) = certificate(lab.node(1), "client")?;
            ensure!(serial.is_none() && error.contains("cannot sign"), "{serial:?}, {error:?}");
            Ok(())
        })?;
        ensure!(lab.control.log().contains("the root certificate has expired"), "the control plane must say why");
        ensure!(lab.node(1).agent()?.log().contains("no certificate"), "the agent must say so too");
        ensure!(long.running(), "a connection that was open has been cut");

        ensure!(issued(lab)? == before, "a root that is over signs nothing");
        // Nobody is there who could make another: what was valid before is valid again.
        lab.control.kill();
        lab.clock.set_right()?;
        eventually("service", RENEWAL, || pair.serves())?;
        ensure!(long.running(), "a connection that was open has been cut");
        lab.control.start()?;
        newcomer_is_served(&pair, "newcomer")?;
        ensure!(capture.seen().sightings.is_empty(), "{:?}", capture.seen().sightings);
        Ok(())
    })
}

#[test]
fn hardening_F44_a_node_whose_clock_alone_is_wrong_harms_itself_only() -> Result<()> {
    with_clocks(|| {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        let (wrong, right) = (lab.node(1), lab.node(2));
        pair.serves()?;
        let long = pair.hold()?;
        let capture = Capture::start(&lab.fabric, &[TOKEN])?;

        // Ahead: what it has is over, and so is what it is given.
        wrong.clock.set(DAY_LATER)?;
        eventually("the alarm", RENEWAL, || {
            ensure!(pair.send()? != 0, "a connection without a valid certificate was served");
            let (serial, error) = certificate(wrong, "client")?;
            ensure!(serial.is_none() && error.contains("Expired"), "{serial:?}, {error:?}");
            Ok(())
        })?;
        wrong.clock.set_right()?;
        eventually("service, and a certificate that was asked for before", RENEWAL, || {
            let (_, error) = certificate(wrong, "client")?;
            ensure!(error.is_empty(), "{error}");
            pair.serves()
        })?;

        // Behind: it keeps what it has, which others accept.
        let (own, others) = (certificate(wrong, "client")?.0, certificate(right, "server")?.0);
        wrong.clock.set(DAY_BEFORE)?;
        eventually("the alarm", RENEWAL, || {
            let (serial, error) = certificate(wrong, "client")?;
            ensure!(serial == own && error.contains("NotValidYet"), "{own:?}, {serial:?}, {error:?}");
            Ok(())
        })?;
        pair.serves().context("through the tunnel that is open")?;
        wrong.clock.set_right()?;
        newcomer_is_served(&pair, "newcomer")?;

        ensure!(certificate(right, "server")?.0 == others, "the other node has nothing to renew");
        ensure!(long.running(), "a connection that was open has been cut");
        ensure!(capture.seen().sightings.is_empty(), "{:?}", capture.seen().sightings);
        Ok(())
    })
}

#[test]
fn hardening_F44_a_clock_that_stands_still_stops_no_timer() -> Result<()> {
    with_clocks(|| {
        let config = LabConfig { control_args: vec!["--secret-ttl".into(), "8s".into()], ..LabConfig::default() };
        let pair = Pair::start(config)?;
        let lab = &pair.lab;
        let load = pair.patient(20, 10)?;
        lab.clock.set(&format!("@{}", mesh_tests::apps::client::now_ms() / 1000))?;
        let before = issued(lab)?;
        until("three renewals of both", Duration::from_secs(60), || issued(lab).is_ok_and(|n| n >= before + 6.0))?;
        newcomer_is_served(&pair, "newcomer")?;
        load.ended()?.flawless()?;
        lab.control.kill();
        lab.control.start()?;
        newcomer_is_served(&pair, "later")?;
        ensure!(lab.nodes.iter().all(|node| node.agent().is_ok_and(|a| a.ready_status().is_ok_and(|s| s == 200))));
        eventually("service", SOON, || pair.serves())
    })
}
