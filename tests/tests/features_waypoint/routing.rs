//! Where requests go: rows B2, B3, B4 and B14.
use crate::stage::{CHANGE, JASON, SOON, Stage, bookinfo, failed, percent};
use anyhow::{Result, ensure};
use mesh_tests::harness::bookinfo::parse;
use mesh_tests::harness::routing::{http_route, virtual_service};
use mesh_tests::harness::{Need, Stars, in_lab, until};
use std::time::{Duration, Instant};

/// The same rules in Istio's form and in the Gateway API's.
fn forms(istio: &[&str], gateway: &[&str]) -> [String; 2] {
    [virtual_service("reviews", istio), http_route("reviews", gateway)]
}

/// Shares of two versions of reviews.
fn shares(one: (&str, u32), other: (&str, u32)) -> [String; 2] {
    let (istio, gateway): (Vec<_>, Vec<_>) = [one, other]
        .map(|(version, weight)| {
            (
                format!("{{destination: {{host: reviews-{version}}}, weight: {weight}}}"),
                format!("{{name: reviews-{version}, port: 9080, weight: {weight}}}"),
            )
        })
        .into_iter()
        .unzip();
    forms(&[&format!("{{route: [{}]}}", istio.join(", "))], &[&format!("{{backendRefs: [{}]}}", gateway.join(", "))])
}

#[test]
fn features_B2_B3_B4_B14_requests_are_routed() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        all_to_one_version(&stage)?;
        by_user(&stage)?;
        by_share(&stage)?;
        the_first_match_wins(&stage)
    })
}

/// B2
fn all_to_one_version(stage: &Stage) -> Result<()> {
    for text in
        forms(&["{route: [{destination: {host: reviews-v1}}]}"], &["{backendRefs: [{name: reviews-v1, port: 9080}]}"])
    {
        stage.lab.apply("reviews", &text)?;
        stage.becomes(None, Stars::None)?;
        stage.all(None, 50, Stars::None)?;
        stage.lab.delete("reviews")?;
        // Without the route all versions answer again.
        until("another version", CHANGE, || stage.page(None).is_ok_and(|load| load.stars != Stars::None))?;
    }
    Ok(())
}

/// B3: the name of the header is written in other letters than productpage sends it.
fn by_user(stage: &Stage) -> Result<()> {
    let istio = [
        "{match: [{headers: {End-User: {exact: jason}}}], route: [{destination: {host: reviews-v2}}]}",
        "{route: [{destination: {host: reviews-v1}}]}",
    ];
    let gateway = [
        "{matches: [{headers: [{name: END-USER, value: jason}]}], backendRefs: [{name: reviews-v2, port: 9080}]}",
        "{backendRefs: [{name: reviews-v1, port: 9080}]}",
    ];
    // Istio's names of headers are lower case; anything else it refuses.
    let istio = istio.map(|rule| rule.replace("End-User", "end-user"));
    for text in forms(&istio.each_ref().map(String::as_str), &gateway) {
        stage.lab.apply("reviews", &text)?;
        stage.becomes(Some(JASON), Stars::Black)?;
        stage.all(Some(JASON), 10, Stars::Black)?;
        for other in [None, Some("Jason"), Some("jasonx"), Some("mary")] {
            stage.all(other, 5, Stars::None)?;
        }
        stage.lab.delete("reviews")?;
        until("the end of the route", CHANGE, || stage.page(Some(JASON)).is_ok_and(|load| load.stars != Stars::Black))?;
    }
    Ok(())
}

/// B4: a change is in force within five seconds, and no load fails meanwhile.
fn by_share(stage: &Stage) -> Result<()> {
    let all_red =
        forms(&["{route: [{destination: {host: reviews-v3}}]}"], &["{backendRefs: [{name: reviews-v3, port: 9080}]}"]);
    let half = shares(("v1", 50), ("v3", 50));
    let tenth = shares(("v1", 90), ("v3", 10));
    for (half, (tenth, all)) in half.iter().zip(tenth.iter().zip(&all_red)) {
        // Of n loads a share p has a standard deviation of sqrt(p (1 - p) / n): what is let pass is five of them.
        for (text, count, wanted, slack) in [(half, 300, 50.0, 14.5), (tenth, 200, 10.0, 9.9)] {
            stage.lab.apply("reviews", text)?;
            until("red and no stars", CHANGE, || {
                stage
                    .loads(None, 20)
                    .is_ok_and(|loads| percent(&loads, Stars::Black) == 0.0 && percent(&loads, Stars::Red) < 100.0)
            })?;
            let loads = stage.loads(None, count)?;
            let red = percent(&loads, Stars::Red);
            ensure!(failed(&loads).is_none(), "{:?}", failed(&loads));
            ensure!(
                (red - wanted).abs() <= slack && percent(&loads, Stars::Black) == 0.0,
                "{red} % of {count} are red"
            );
        }
        let running = stage.start_loads(None, 400, Duration::from_millis(10))?;
        until("the first loads", SOON, || running.stdout().lines().count() > 10)?;
        let (before, start) = (running.stdout().lines().count(), Instant::now());
        stage.lab.apply("reviews", all)?;
        stage.becomes(None, Stars::Red)?;
        until("ten red pages in a row", CHANGE, || {
            let loads = parse(&running.stdout());
            loads.len() > before + 10 && loads[loads.len() - 10..].iter().all(|load| load.stars == Stars::Red)
        })?;
        ensure!(start.elapsed() < CHANGE, "it took {:?}", start.elapsed());
        running.kill();
        let loads = parse(&running.stdout());
        ensure!(failed(&loads).is_none(), "of {} loads: {:?}", loads.len(), failed(&loads));
        stage.all(None, 20, Stars::Red)?;
        stage.lab.delete("reviews")?;
    }
    Ok(())
}

/// B14: weights are of the rule that matches, and of it alone.
fn the_first_match_wins(stage: &Stage) -> Result<()> {
    let istio = [
        "{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews-v2}}]}",
        "{match: [{headers: {end-user: {regex: 'ma.*'}}}], mirror: {host: reviews-v2}, route: [{destination: {host: reviews-v1}, weight: 50}, {destination: {host: reviews-v3}, weight: 50}]}",
        "{match: [{headers: {end-user: {exact: mary}}}], route: [{destination: {host: reviews-v2}}]}",
        "{route: [{destination: {host: reviews-v1}}]}",
    ];
    // The Gateway API tries the rule with more conditions first, and of equals the first.
    let gateway = [
        "{matches: [{headers: [{name: end-user, value: jason}]}], backendRefs: [{name: reviews-v2, port: 9080}]}",
        "{matches: [{headers: [{name: end-user, type: RegularExpression, value: 'ma.*'}]}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: reviews-v2, port: 9080}}}], backendRefs: [{name: reviews-v1, port: 9080, weight: 50}, {name: reviews-v3, port: 9080, weight: 50}]}",
        "{matches: [{headers: [{name: end-user, value: mary}]}], backendRefs: [{name: reviews-v2, port: 9080}]}",
        "{backendRefs: [{name: reviews-v1, port: 9080}]}",
    ];
    for text in forms(&istio, &gateway) {
        stage.lab.apply("reviews", &text)?;
        stage.becomes(Some(JASON), Stars::Black)?;
        stage.all(Some(JASON), 10, Stars::Black)?;
        stage.all(None, 10, Stars::None)?;
        let loads = stage.loads(Some("mary"), 60)?;
        ensure!(failed(&loads).is_none() && percent(&loads, Stars::Black) == 0.0, "{:?}", failed(&loads));
        let red = percent(&loads, Stars::Red);
        ensure!((red - 50.0).abs() < 33.0, "{red} % of mary's are red");
        stage.lab.delete("reviews")?;
        until("the end of the route", CHANGE, || stage.page(Some(JASON)).is_ok_and(|load| load.stars != Stars::Black))?;
    }
    Ok(())
}
