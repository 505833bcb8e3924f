//! Ingress from outside of the mesh, as a user would check it: a gateway process before Bookinfo and httpbin, each row with every form that it can be written in.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

mod backends;
mod circles;
mod datagrams;
mod egress;
mod plain;
mod secure;
mod sets;
mod stage;
mod topology;
