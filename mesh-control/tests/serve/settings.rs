//! Mesh settings in the folder of manifests: heeded by streams and the authority as they change, and a bad edit changes nothing.

use super::support::{csr, request};
use super::{BOOKINFO, Plane, REVIEWS};
use tonic::Code;

fn settings(mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: {mesh:?}}}\n"
    )
}

async fn code(plane: &Plane, identity: &str) -> Code {
    let answer = plane.certificate(&plane.token("node1"), request(identity, &csr().1, 600)).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn a_trust_domain_is_changed_without_a_restart_and_a_bad_edit_changes_nothing() {
    let plane = Plane::start(&[("bookinfo.yaml", BOOKINFO)], &[]).await;
    let other = REVIEWS.replace("cluster.local", "prod.example");
    let mut agent = plane.agent("node1").await;
    agent.until("workloads", |held| held.len() >= 10).await;
    let domains = |held: &std::collections::HashMap<String, mesh_proto::discovery::Resource>, domain: &str| {
        let texts = held.values().filter(|r| r.name.contains("/Pod/"));
        texts
            .filter(|r| r.resource.as_ref().unwrap().value.windows(domain.len()).any(|w| w == domain.as_bytes()))
            .count()
    };
    assert_eq!((code(&plane, REVIEWS).await, code(&plane, &other).await), (Code::Ok, Code::InvalidArgument));

    plane.write("mesh.yaml", &settings("trustDomain: prod.example"));
    agent.until("the trust domain", |held| domains(held, "prod.example") == 6).await;
    assert_eq!((code(&plane, REVIEWS).await, code(&plane, &other).await), (Code::InvalidArgument, Code::Ok));

    // Something that is not read, and something that is: the second is here, so the first has been seen.
    plane.write("mesh.yaml", &settings("trustDomain: [prod.example"));
    let namespace = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: bookinfo}\nspec: {clusterIP: 198.18.200.99, ports: [{port: 80}]}\n";
    plane.write("late.yaml", namespace);
    agent.until("the service", |held| held.contains_key("bookinfo/late.bookinfo.svc.cluster.local")).await;
    assert_eq!((code(&plane, REVIEWS).await, code(&plane, &other).await), (Code::InvalidArgument, Code::Ok));
    let (_, diagnoses) = plane.page("/debug/diagnoses").await;
    assert!(diagnoses.contains("ConfigMap undermesh-system/undermesh"), "{diagnoses}");

    // Gone is not empty: they stay for a while, also when something else is heard.
    plane.remove("mesh.yaml");
    plane.remove("late.yaml");
    agent.until("no service", |held| !held.contains_key("bookinfo/late.bookinfo.svc.cluster.local")).await;
    assert_eq!((code(&plane, REVIEWS).await, code(&plane, &other).await), (Code::InvalidArgument, Code::Ok));
    plane.write("mesh.yaml", &settings(""));
    agent.until("the old trust domain", |held| domains(held, "prod.example") == 0).await;
    assert_eq!(code(&plane, REVIEWS).await, Code::Ok);
}
