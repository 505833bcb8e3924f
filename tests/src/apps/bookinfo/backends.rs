//! details, reviews and ratings.
use super::{Answer, Service, call, json, propagate};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

const REVIEWS: [(&str, &str); 2] = [
    ("Reviewer1", "Two pairs of twins, one town and no explanation: I laughed from the first mistake to the last."),
    ("Reviewer2", "Fast and merry, if a little thin on character. The shortest evening you can spend with its author."),
];

fn id(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

pub(super) fn details(path: &str) -> Answer {
    if !path.starts_with("/details/") {
        return json(StatusCode::NOT_FOUND, &json!({"error": "not found"}));
    }
    match id(path, "/details/") {
        None => json(StatusCode::BAD_REQUEST, &json!({"error": "please provide numeric product id"})),
        Some(id) => json(
            StatusCode::OK,
            &json!({
                "id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
                "publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
            }),
        ),
    }
}

pub(super) fn ratings(path: &str) -> Answer {
    match id(path, "/ratings/") {
        None if path.starts_with("/ratings/") => {
            json(StatusCode::BAD_REQUEST, &json!({"error": "please provide numeric product ID"}))
        }
        None => json(StatusCode::NOT_FOUND, &json!({"error": "not found"})),
        Some(id) => json(StatusCode::OK, &json!({"id": id, "ratings": {"Reviewer1": 5, "Reviewer2": 4}})),
    }
}

pub(super) async fn reviews(service: &Service, path: &str, headers: &HeaderMap) -> Answer {
    let Some(id) = id(path, "/reviews/") else {
        return json(StatusCode::NOT_FOUND, &json!({"error": "not found"}));
    };
    let stars = match service.version.as_str() {
        "v2" => Some(("black", Duration::from_secs(10))),
        "v3" => Some(("red", Duration::from_millis(2500))),
        _ => None,
    };
    let ratings = match stars {
        None => None,
        Some((color, limit)) => {
            let answer = call("ratings", &format!("/ratings/{id}"), propagate(headers), limit).await;
            if let Err(e) = &answer {
                println!("ratings failed: {e:#}");
            }
            Some((color, answer.ok().filter(|(status, _)| status.is_success()).map(|(_, body)| body)))
        }
    };
    let list: Vec<Value> = REVIEWS
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            match &ratings {
                None => {}
                Some((color, Some(body))) => {
                    let stars = body["ratings"][*reviewer].as_u64().unwrap_or(0);
                    review["rating"] = json!({"stars": stars, "color": color});
                }
                Some((_, None)) => review["rating"] = json!({"error": "Ratings service is currently unavailable"}),
            }
            review
        })
        .collect();
    let body = json!({"id": id.to_string(), "podname": service.pod, "clustername": "lab", "reviews": list});
    json(StatusCode::OK, &body)
}
