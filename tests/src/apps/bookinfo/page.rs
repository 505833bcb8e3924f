//! productpage: the HTML page, the login session and the JSON API.
use super::{Answer, Service, call, json, propagate, text};
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(3);
const NO_DETAILS: &str = "Sorry, product details are currently unavailable for this book.";
const NO_REVIEWS: &str = "Sorry, product reviews are currently unavailable for this book.";
const STYLE: &str = "body{font-family:system-ui,sans-serif;margin:0;color:#1c2430;background:#f5f6f8}header{background:#27324a;color:#fff;padding:.8rem 2rem;display:flex;justify-content:space-between}main{max-width:60rem;margin:2rem auto;padding:0 1rem}section{background:#fff;border-radius:8px;padding:1rem 1.5rem;margin:1rem 0;box-shadow:0 1px 3px #0002}.cols{display:grid;grid-template-columns:1fr 2fr;gap:1rem}blockquote{margin:.6rem 0;padding-left:1rem;border-left:3px solid #c9d2e3}.stars.black{color:#111}.stars.red{color:#d22}.error{color:#a40000}dt{font-weight:600}dd{margin:0 0 .4rem}small{color:#667}";

pub(super) async fn handle(service: &Service, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_string();
    let mut headers = propagate(request.headers());
    let user = session(request.headers());
    if let Some(user) = user.as_deref().and_then(|u| HeaderValue::from_str(u).ok()) {
        headers.insert("end-user", user);
    }
    match (request.method(), path.as_str()) {
        (&Method::POST, "/login") => login(request).await,
        (_, "/logout") => redirect("session=; Max-Age=0; Path=/"),
        (_, "/") => text(
            StatusCode::OK,
            "text/html; charset=utf-8",
            frame("", "<section><h1>Bookinfo</h1><p><a href=\"/productpage\">The Comedy of Errors</a></p></section>"),
        ),
        (_, "/productpage") => product_page(service, &headers, user.as_deref()).await,
        (_, "/api/v1/products") => json(StatusCode::OK, &json!([product()])),
        (_, "/static/style.css") => text(StatusCode::OK, "text/css", STYLE.into()),
        (_, path) => api(path, headers).await,
    }
}

fn product() -> Value {
    json!({"id": 0, "title": "The Comedy of Errors", "descriptionHtml": "Two pairs of twins, parted at birth, are taken for each other in one day in Ephesus."})
}

async fn api(path: &str, headers: HeaderMap) -> Answer {
    let Some(rest) = path.strip_prefix("/api/v1/products/") else {
        return json(StatusCode::NOT_FOUND, &json!({"error": "not found"}));
    };
    let (id, what) = rest.split_once('/').unwrap_or((rest, "details"));
    if id != "0" || !["details", "reviews", "ratings"].contains(&what) {
        return json(StatusCode::NOT_FOUND, &json!({"error": "not found"}));
    }
    let (status, body) = match what {
        "details" => details(&headers).await,
        "reviews" => reviews(&headers).await,
        other => call(other, &format!("/{other}/{id}"), headers, LIMIT).await.unwrap_or((
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"error": "Sorry, product ratings are currently unavailable for this book."}),
        )),
    };
    json(status, &body)
}

/// Details, or the sorry text: one try.
async fn details(headers: &HeaderMap) -> (StatusCode, Value) {
    match call("details", "/details/0", headers.clone(), LIMIT).await {
        Ok((status, body)) if status.is_success() => (status, body),
        other => {
            println!("details failed: {other:?}");
            let status = other.map_or(StatusCode::INTERNAL_SERVER_ERROR, |(status, _)| status);
            (status, json!({"error": NO_DETAILS}))
        }
    }
}

/// Reviews, or the sorry text: two tries.
async fn reviews(headers: &HeaderMap) -> (StatusCode, Value) {
    let mut status = StatusCode::INTERNAL_SERVER_ERROR;
    for _ in 0..2 {
        match call("reviews", "/reviews/0", headers.clone(), LIMIT).await {
            Ok((got, body)) if got.is_success() => return (got, body),
            Ok((got, _)) => status = got,
            Err(e) => println!("reviews failed: {e:#}"),
        }
    }
    (status, json!({"error": NO_REVIEWS}))
}

async fn product_page(service: &Service, headers: &HeaderMap, user: Option<&str>) -> Answer {
    let ((details_status, details), (reviews_status, reviews)) = (details(headers).await, reviews(headers).await);
    let mut body = String::from(
        "<section><h1>The Comedy of Errors</h1><p>Summary: Two pairs of twins, parted at birth, are taken for each other in one day in Ephesus.</p></section><div class=\"cols\">",
    );
    if details_status.is_success() {
        body.push_str("<section><h2>Book Details</h2><dl>");
        for (label, key) in [
            ("Type", "type"),
            ("Pages", "pages"),
            ("Publisher", "publisher"),
            ("Language", "language"),
            ("ISBN-10", "ISBN-10"),
            ("ISBN-13", "ISBN-13"),
        ] {
            let _ = write!(body, "<dt>{label}</dt><dd>{}</dd>", escape(&plain(&details[key])));
        }
        body.push_str("</dl></section>");
    } else {
        error(&mut body, "Error fetching product details!", &details);
    }
    if reviews_status.is_success() {
        let pod = escape(&plain(&reviews["podname"]));
        let _ = write!(body, "<section><h2>Book Reviews</h2><small>Reviews served by: <u>{pod}</u></small>");
        for review in reviews["reviews"].as_array().into_iter().flatten() {
            let _ = write!(
                body,
                "<blockquote><p>{}</p><small>{}</small>",
                escape(&plain(&review["text"])),
                escape(&plain(&review["reviewer"]))
            );
            match (&review["rating"]["stars"], &review["rating"]["error"]) {
                (Value::Number(stars), _) => {
                    let n = stars.as_u64().unwrap_or(0).min(5) as usize;
                    let color = escape(&plain(&review["rating"]["color"]));
                    let _ = write!(
                        body,
                        "<div class=\"stars {color}\" title=\"{n} stars\">{}{}</div>",
                        "★".repeat(n),
                        "☆".repeat(5 - n)
                    );
                }
                (_, Value::String(message)) => {
                    let _ = write!(body, "<p class=\"error\"><i>{}</i></p>", escape(message));
                }
                _ => {}
            }
            body.push_str("</blockquote>");
        }
        body.push_str("</section>");
    } else {
        error(&mut body, "Error fetching product reviews!", &reviews);
    }
    let _ = write!(body, "</div><small>productpage {}</small>", escape(&service.version));
    text(StatusCode::OK, "text/html; charset=utf-8", frame(&escape(user.unwrap_or("")), &body))
}

fn error(body: &mut String, title: &str, value: &Value) {
    let _ =
        write!(body, "<section><h2 class=\"error\">{title}</h2><p>{}</p></section>", escape(&plain(&value["error"])));
}

fn frame(user: &str, body: &str) -> String {
    let session = if user.is_empty() {
        "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"user\"> <button>Sign in</button></form>".to_string()
    } else {
        format!("<span>{user} (<a style=\"color:#fff\" href=\"/logout\">sign out</a>)</span>")
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Simple Bookstore App</title><link rel=\"stylesheet\" href=\"/static/style.css\"></head><body><header><strong>BookInfo Sample</strong>{session}</header><main>{body}</main></body></html>\n"
    )
}

async fn login(request: Request<Incoming>) -> Answer {
    let body = Limited::new(request.into_body(), 4096).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let form = String::from_utf8_lossy(&body);
    let user = form.split('&').find_map(|pair| pair.strip_prefix("username=")).unwrap_or("");
    let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    redirect(&format!("session={user}; Path=/; HttpOnly"))
}

fn redirect(cookie: &str) -> Answer {
    let mut answer = text(StatusCode::FOUND, "text/plain", String::new());
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/productpage"));
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

fn session(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(COOKIE)?.to_str().ok()?;
    let user = cookies.split(';').find_map(|c| c.trim().strip_prefix("session="))?;
    (!user.is_empty()).then(|| user.to_string())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
