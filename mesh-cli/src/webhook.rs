//! `meshctl webhook pause | resume`: lets edits pass while nobody can answer the webhook, and has them checked again. The control plane undoes its own part
//! by the annotation; with all of it down nobody does, so both are written here: the annotation, and what the API server does without an answer.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::api::Api;
use crate::context::Context;
use crate::output::{Format, data};
use crate::stop::{OK, Stop};

/// The configuration that the API server has of it.
const NAME: &str = "undermesh-validation";
/// `"true"` on it: nobody waits for an answer.
pub const PAUSED: &str = "undermesh.io/paused";
/// The control plane may write at the same moment.
const ATTEMPTS: usize = 5;

/// Options of the verb.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Webhook {
    /// What to do
    #[command(subcommand)]
    order: Order,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Subcommand)]
enum Order {
    /// Let edits pass unchecked when nobody answers, until `resume`
    Pause,
    /// Have edits checked again, once the webhook is seen to answer
    Resume,
}

/// Does it.
pub async fn run(options: &Webhook, context: &Context) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    let path = format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}");
    let is_pause = options.order == Order::Pause;
    let mut is_changed = false;
    for attempt in 1.. {
        let Some(config) = api.find(&path).await? else {
            let why = "nothing holds edits up; `meshctl install` makes it";
            return Err(Stop::failed(format!("there is no ValidatingWebhookConfiguration {NAME}: {why}")));
        };
        let Some(change) = change(&config, is_pause) else { break };
        match api.merge_lists(&path, &change).await {
            Ok(()) => is_changed = true,
            Err(failure) if failure.code == 409 && attempt < ATTEMPTS => continue,
            Err(failure) => return Err(failure.into()),
        }
        break;
    }
    let said = answer(is_pause, is_changed);
    match context.format {
        Format::Text => data(&format!("{said}\n")).map_err(Stop::failed)?,
        _ => context.print(&json!({ "webhook": NAME, "paused": is_pause, "changed": is_changed, "message": said }))?,
    }
    Ok(OK)
}

/// What is to be changed of a configuration; nothing if it is as it should be. Of the version that was read, and no other.
fn change(config: &Value, is_pause: bool) -> Option<Value> {
    let is_paused = config["metadata"]["annotations"][PAUSED] == "true";
    let webhooks = config["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let waited_for = webhooks.iter().filter(|webhook| webhook["failurePolicy"] != "Ignore");
    // Who resumes leaves it to the control plane: it has to be seen to answer first.
    let open: Vec<Value> = match is_pause {
        true => waited_for.map(|webhook| json!({ "name": webhook["name"], "failurePolicy": "Ignore" })).collect(),
        false => Vec::new(),
    };
    if is_paused == is_pause && open.is_empty() {
        return None;
    }
    let annotation = if is_pause { json!("true") } else { Value::Null };
    let version = &config["metadata"]["resourceVersion"];
    let mut change = json!({ "metadata": { "resourceVersion": version, "annotations": { PAUSED: annotation } } });
    if !open.is_empty() {
        change["webhooks"] = json!(open);
    }
    Some(change)
}

fn answer(is_pause: bool, is_changed: bool) -> String {
    let said = match (is_pause, is_changed) {
        (true, true) => "paused: what nobody answers for is kept unchecked; `meshctl webhook resume` ends it",
        (true, false) => "it was paused already",
        (false, true) => "resumed: edits wait for the webhook again as soon as the control plane has seen it answer",
        (false, false) => "it was not paused",
    };
    said.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pausing_writes_what_the_control_plane_cannot_and_resuming_leaves_the_rest_to_it() {
        let config = |paused: Option<&str>, policies: &[&str]| {
            let names = ["a", "b"].into_iter().zip(policies);
            let webhooks: Vec<Value> = names.map(|(n, p)| json!({ "name": n, "failurePolicy": p })).collect();
            let annotations = paused.map_or(json!({}), |paused| json!({ PAUSED: paused }));
            json!({ "metadata": { "resourceVersion": "7", "annotations": annotations }, "webhooks": webhooks })
        };
        let with = |annotation: Value, webhooks: Option<Value>| {
            let mut change = json!({ "metadata": { "resourceVersion": "7", "annotations": { PAUSED: annotation } } });
            if let Some(webhooks) = webhooks {
                change["webhooks"] = webhooks;
            }
            Some(change)
        };
        let opened = |name: &str| json!({ "name": name, "failurePolicy": "Ignore" });
        for (what, config, is_pause, expected) in [
            (
                "nobody answers",
                config(None, &["Fail", "Fail"]),
                true,
                with(json!("true"), Some(json!([opened("a"), opened("b")]))),
            ),
            ("one is open", config(None, &["Ignore", "Fail"]), true, with(json!("true"), Some(json!([opened("b")])))),
            ("all are open", config(None, &["Ignore", "Ignore"]), true, with(json!("true"), None)),
            // A replica that went down before it saw the annotation.
            ("half", config(Some("true"), &["Fail", "Ignore"]), true, with(json!("true"), Some(json!([opened("a")])))),
            ("paused", config(Some("true"), &["Ignore", "Ignore"]), true, None),
            ("written by hand", config(Some("false"), &["Ignore"]), true, with(json!("true"), None)),
            ("to resume", config(Some("true"), &["Ignore", "Ignore"]), false, with(Value::Null, None)),
            ("not paused", config(None, &["Fail", "Fail"]), false, None),
        ] {
            assert_eq!(change(&config, is_pause), expected, "{what}");
        }
    }
}
