//! `meshctl version`: of this program, the control plane and the agents.

use serde_json::json;

use crate::api::Api;
use crate::check::facts::{AGENT, CONTROL, Snapshot};
use crate::context::Context;
use crate::output::{Format, data, note};
use crate::status::versions;
use crate::stop::{OK, Stop};

/// Options of the verb.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Version {
    /// Only that of this program, on one line; no cluster is asked
    #[arg(short, long)]
    short: bool,
    /// Only that of this program; no cluster is asked
    #[arg(long)]
    client: bool,
}

/// Shows.
pub async fn run(options: Version, context: &Context) -> Result<u8, Stop> {
    let ours = env!("CARGO_PKG_VERSION");
    if options.short {
        data(&format!("{ours}\n")).map_err(Stop::failed)?;
        return Ok(OK);
    }
    let snapshot = if options.client { None } else { remote(context).await };
    let parts = snapshot.as_ref().map(|snapshot| [CONTROL, AGENT].map(|app| versions(snapshot, app)));
    match context.format {
        Format::Text => {
            let mut text = format!("client: {ours}\n");
            if let Some([control, agents]) = parts {
                text.push_str(&format!("control plane: {}\nagents: {}\n", control.join(", "), agents.join(", ")));
            }
            data(&text).map_err(Stop::failed)?;
        }
        Format::Json | Format::Yaml => {
            let mut answer = json!({ "client": ours });
            if let Some([control, agents]) = parts {
                answer["controlPlane"] = json!(control);
                answer["agents"] = json!(agents);
            }
            context.print(&answer)?;
        }
    }
    Ok(OK)
}

/// The pods of the mesh. A cluster that cannot be asked is no error: the own version is an answer, too.
async fn remote(context: &Context) -> Option<Snapshot> {
    let read = async {
        let api = Api::connect(&context.access).await?;
        let pods = api.view(&format!("/api/v1/namespaces/{}/pods", context.namespace)).await?;
        Ok::<_, Stop>(Snapshot { namespace: context.namespace.clone(), pods, ..Snapshot::default() })
    };
    read.await.inspect_err(|stop| note(&format!("the cluster cannot be asked: {stop}"))).ok()
}
