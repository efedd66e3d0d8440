//! Connections of HTTP/1.1 that serve one request: of whoever is close by and asks for one thing at a time.

use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;

/// How long the head of a request may take.
const HEAD_MAX: Duration = Duration::from_secs(5);

const HEAD_BYTES_MAX: usize = 8192;

/// Serves such a connection. How long that may take in all is whoever calls it to bound.
pub(crate) fn server() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
}
