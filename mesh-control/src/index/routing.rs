//! What says where requests go, of the namespaces that are of the mesh. Nothing acts on it yet: whoever wrote an object that is for a mesh as ours is told so.

use super::Settings;
use crate::diagnosis::Problem;
use crate::resource::routing::{self, Routes};
use crate::resource::{Key, Objects};

/// The objects, and what is to be said of each.
pub fn index(objects: &Objects, settings: &Settings, problems: &mut Vec<(Key, Problem)>) -> Routes {
    let mut routes = objects.routes.clone();
    routes.retain(|name| name.namespace.is_empty() || settings.heeds(objects, &name.namespace));
    for (key, object) in routes.iter() {
        if let Some(why) = routing::inaction(key.kind).filter(|_| routing::is_ours(&object, settings.istio_runs)) {
            problems.push((key, Problem::warning("", why)));
        }
    }
    routes
}
