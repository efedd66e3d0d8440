//! What a daemon without an API of its own answers over HTTP: `/metrics`, `/healthz`, `/readyz`.
//!
//! *Healthy* means that the process lives and its runtime comes round; it never depends on anybody else. *Ready*
//! means that the daemon does its work now, and if not, why.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, StatusCode};
use prometheus_client::registry::{Metric, Registry};
use tokio::net::TcpListener;

use crate::http::{self, Limits, Response};
use crate::tasks::Tasks;

const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the daemon does its work, and if not, why. Clones are the same flag. Starts as not ready: `starting`.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<RwLock<Option<Cow<'static, str>>>>);

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness(Arc::new(RwLock::new(Some(Cow::Borrowed("starting")))))
    }
}

impl Readiness {
    /// From now on ready.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// From now on not ready, for this reason, which anybody on this machine may read.
    pub fn set_not_ready(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(Some(reason.into()));
    }

    /// `None` when ready, else the reason.
    pub fn reason(&self) -> Option<Cow<'static, str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: Option<Cow<'static, str>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// Registers a metric at the place where it is made, so that none is made and forgotten. Clones of a metric are the same
/// metric: the one that is given back is counted with, the other one shown.
pub fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// [`register`], of a metric that starts as usual.
pub fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register(registry, name, help, M::default())
}

/// Serves the three pages until the daemon stops.
pub fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: Readiness,
    limits: Limits,
    tasks: &Tasks,
) {
    let handler = move |request: hyper::Request<hyper::body::Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &registry, &readiness);
        std::future::ready(answer)
    };
    http::serve_http(listener, handler, limits, tasks);
}

/// The answer to one request for the pages; a daemon with an HTTP server of its own can use it too.
pub fn answer(method: &Method, path: &str, registry: &Registry, readiness: &Readiness) -> Response {
    let respond: fn(&Registry, &Readiness) -> Response = match path {
        "/metrics" => |registry, _| metrics(registry),
        "/healthz" => |_, _| http::text(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => |_, readiness| ready(readiness),
        _ => return http::text(StatusCode::NOT_FOUND, TEXT, "not found\n"),
    };
    if method == Method::GET || method == Method::HEAD {
        return respond(registry, readiness);
    }
    let mut response = http::text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn metrics(registry: &Registry) -> Response {
    let mut page = String::new();
    match prometheus_client::encoding::text::encode(&mut page, registry) {
        Ok(()) => http::text(StatusCode::OK, OPENMETRICS, page),
        Err(std::fmt::Error) => {
            tracing::error!("the metrics could not be written");
            http::text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics could not be written\n")
        }
    }
}

fn ready(readiness: &Readiness) -> Response {
    match readiness.reason() {
        None => http::text(StatusCode::OK, TEXT, "ready\n"),
        Some(reason) => http::text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{ask, listener};
    use prometheus_client::metrics::counter::Counter;

    #[tokio::test]
    async fn the_pages_say_what_is() {
        let (listener, address) = listener();
        let mut registry = Registry::default();
        let wakes: Counter = registered(&mut registry, "berth_wakes", "Wakes");
        let readiness = Readiness::default();
        let tasks = Tasks::new();
        serve(listener, Arc::new(registry), readiness.clone(), Limits::default(), &tasks);
        let get = async |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;

        wakes.inc_by(3);
        let page = get("/metrics").await;
        assert!(page.contains("content-type: application/openmetrics-text; version=1.0.0"), "{page}");
        assert!(page.contains("\nberth_wakes_total 3\n") && page.ends_with("# EOF\n"), "{page}");

        let page = get("/readyz").await;
        assert!(page.starts_with("HTTP/1.1 503 ") && page.ends_with("not ready: starting\n"), "{page}");
        readiness.set_ready();
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200 "));
        readiness.set_not_ready("docker does not answer");
        assert!(get("/readyz").await.ends_with("not ready: docker does not answer\n"));
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(get("/healthz/x").await.starts_with("HTTP/1.1 404 "));

        let page = ask(address, "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 405 ") && page.contains("allow: GET, HEAD"), "{page}");
    }

    #[test]
    fn the_head_of_a_page_has_its_status() {
        let answer = answer(&Method::HEAD, "/healthz", &Registry::default(), &Readiness::default());
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
