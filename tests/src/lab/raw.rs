//! HTTP/1.1 by hand: connections that are kept open over many requests, and requests that no library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(45);

/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct RawReply {
    /// The status.
    pub status: u16,
    /// The head as text, in lower case.
    pub head: String,
    /// The body as text.
    pub body: String,
}

/// A connection that is used for one request after the other, and made anew where the other end closes it.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// To this address, at the first request.
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, buffer: Vec::new() }
    }

    /// Forgets the connection: the next request makes a new one.
    pub fn close(&mut self) {
        self.stream = None;
        self.buffer.clear();
    }

    /// Sends these bytes and reads one answer.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn ask(&mut self, request: &str) -> RawReply {
        let answer = timeout(ANSWER, async {
            // A connection that was kept may have been closed meanwhile: once more, on a new one.
            let kept = self.stream.is_some();
            match self.exchange(request).await {
                Err(_) if kept => {
                    self.close();
                    self.exchange(request).await
                }
                done => done,
            }
        });
        let answer = answer.await.unwrap_or_else(|_| panic!("no answer within {ANSWER:?} to:\n{request}"));
        answer.unwrap_or_else(|error| panic!("no answer ({error}) to:\n{request}"))
    }

    async fn exchange(&mut self, request: &str) -> std::io::Result<RawReply> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().expect("made above");
        stream.write_all(request.as_bytes()).await?;
        let buffer = &mut self.buffer;
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(buffer).await? == 0 || buffer.len() > HEAD_BYTES_MAX {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let closes = head.lines().any(|line| line.starts_with("connection:") && line.contains("close"));
        let length: Option<usize> = length.and_then(|length| length.trim().parse().ok());
        let whole = length.map(|length| end + length);
        while whole.is_none_or(|whole| buffer.len() < whole) {
            if stream.read_buf(buffer).await? == 0 {
                match whole {
                    None if closes => break,
                    _ => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
        let whole = whole.unwrap_or(buffer.len());
        let body = String::from_utf8_lossy(&buffer[end..whole]).into_owned();
        buffer.drain(..whole);
        if closes {
            self.close();
        }
        Ok(RawReply { status, head, body })
    }
}
