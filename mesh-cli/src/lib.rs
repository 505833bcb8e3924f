//! `meshctl`, also `kubectl-mesh`: installs Undermesh in a Kubernetes cluster, removes it, checks it and shows it. `cli` reads the command line, `chart`
//! and `template` make objects of the chart that is built in, `api` talks to the cluster; a verb is a module.
//!
//! What is decided is pure and tested as tables (`health`, `install::plan`, `uninstall::cleanup`, `check`, `status::summary`, `tap::find`, `waypoint::object`); what does I/O is thin.

pub mod api;
pub mod chart;
pub mod check;
pub mod cli;
pub mod context;
pub mod exec;
pub mod health;
pub mod install;
pub mod output;
pub mod progress;
pub mod status;
pub mod stop;
pub mod tap;
pub mod template;
pub mod uninstall;
pub mod version;
pub mod view;
pub mod wait;
pub mod waypoint;
pub mod webhook;
