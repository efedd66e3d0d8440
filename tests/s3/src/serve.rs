//! The server's thread: accepts connections, lets the faults strike, passes the rest to the store.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::NODE_KEY;
use crate::fault::{Asked, Fault, Faults};

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) fn run(
    listener: std::net::TcpListener,
    service: S3Service,
    faults: Arc<Faults>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        let mut connections = JoinSet::new();
        let mut stopped = stopped;
        loop {
            let socket = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => socket,
                    Err(_) => continue,
                },
                _ = &mut stopped => break,
            };
            // Head and body of an answer are two writes: without this the second waits for the first one's receipt, 40 ms.
            let _as_it_is = socket.set_nodelay(true);
            let (service, faults) = (service.clone(), Arc::clone(&faults));
            connections.spawn(async move {
                let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&faults), request));
                // A connection that a client or a fault ends is nobody's business here.
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), answer)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
        connections.shutdown().await;
    });
}

async fn answer(
    service: S3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let asked = Asked::of(request.method(), request.uri().path());
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let bytes = header(CONTENT_LENGTH).and_then(|text| text.parse().ok()).unwrap_or(0);
    faults.count(asked, bytes);
    // The rights of the node's credential. Its signature is checked by the service, of requests that get that far.
    let node = header(AUTHORIZATION).is_some_and(|text| text.contains(&format!("Credential={NODE_KEY}/")));
    // Giving up an upload that was never whole deletes nothing; S3 has a right of its own for it.
    let gives_up = request.uri().query().is_some_and(|query| query.contains("uploadId"));
    if node && asked == Asked::Delete && !gives_up {
        return error(StatusCode::FORBIDDEN, "AccessDenied", "this key may not delete");
    }
    let strikes = faults.strikes(asked);
    let refusal = match strikes {
        Some(Fault::InternalError) => Some((StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Some(Fault::SlowDown) => Some((StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Fault::RefuseWrites | Fault::RefuseDeletes) => Some((StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::Full) => Some((StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull")),
        Some(Fault::Gone) => return Err(io::Error::other("gone, by a fault")),
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            None
        }
        Some(Fault::CutBody | Fault::WrongByte | Fault::CutList | Fault::EndlessList) | None => None,
    };
    if let Some((status, code)) = refusal {
        // Most stores read a body before they answer. Of one that did not, only a broken connection would be seen.
        let _read_to_its_end = request.collect().await;
        return error(status, code, "by a fault");
    }
    let response = service
        .call(request.map(s3s::Body::from))
        .await
        .map_err(|failed| io::Error::other(format!("{failed:?}")))?;
    let (mut head, body) = response.into_parts();
    let spoils =
        matches!(strikes, Some(Fault::CutBody | Fault::WrongByte | Fault::CutList | Fault::EndlessList));
    if !spoils || !head.status.is_success() {
        return Ok(Response::from_parts(head, body.map_err(io::Error::other).boxed_unsync()));
    }
    let mut whole = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    match strikes {
        Some(Fault::CutList) => goes_on(&mut whole, ""),
        Some(Fault::EndlessList) => {
            goes_on(&mut whole, "<NextContinuationToken>here</NextContinuationToken>")
        }
        _ => {}
    }
    head.headers.insert(CONTENT_LENGTH, whole.len().into());
    let body = if strikes == Some(Fault::CutBody) {
        whole.truncate(whole.len() / 2);
        let frames = [Ok(Frame::data(Bytes::from(whole))), Err(io::Error::other("cut, by a fault"))];
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    } else {
        let middle = whole.len() / 2;
        if strikes == Some(Fault::WrongByte)
            && let Some(byte) = whole.get_mut(middle)
        {
            *byte ^= 0x10;
        }
        Full::new(Bytes::from(whole)).map_err(|never| match never {}).boxed_unsync()
    };
    Ok(Response::from_parts(head, body))
}

/// Has a listing say that there is more of it.
fn goes_on(listing: &mut Vec<u8>, token: &str) {
    let (last, more) = ("<IsTruncated>false</IsTruncated>", "<IsTruncated>true</IsTruncated>");
    *listing = String::from_utf8_lossy(listing).replace(last, &format!("{more}{token}")).into_bytes();
}

fn error(status: StatusCode, code: &str, message: &str) -> io::Result<Response<Body>> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/xml")
        .body(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync())
        .map_err(io::Error::other)
}
