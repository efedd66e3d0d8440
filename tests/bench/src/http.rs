//! One request over one connection, with the time of its first byte. Blocking, so that nothing but the kernel stands
//! between an answer and the clock.

use std::io::{Read, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Longest answer that is read, head included.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// When its first byte was read.
    pub(crate) first_byte: Instant,
}

/// Sends a request without a body and reads the whole answer; the connection is used once.
pub(crate) fn ask(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer> {
    ask_with(stream, method, path, headers, "")
}

/// Sends a request and reads the whole answer; the connection is used once.
pub(crate) fn ask_with(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let mut request = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes()).context("the request could not be sent")?;
    let mut answer = vec![0];
    stream.read_exact(&mut answer).context("no byte of an answer came")?;
    let first_byte = Instant::now();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).context("the answer broke off")?;
    let (status, body) = parse(&answer)?;
    Ok(Answer { status, body, first_byte })
}

/// Status and body of a whole answer.
fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer's head has no end")?;
    let (head, body) = answer.split_at(end);
    let body = body.get(4..).unwrap_or_default();
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let status =
        head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("the answer has no status")?;
    let chunked = head.lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked"));
    Ok((status, if chunked { unchunk(body)? } else { body.to_vec() }))
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").context("a chunk without a size")?;
        let (size, after) = rest.split_at(line);
        let size =
            usize::from_str_radix(String::from_utf8_lossy(size).trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(body);
        }
        let after = after.get(2..).unwrap_or_default();
        ensure!(after.len() >= size + 2, "a chunk is shorter than it says");
        let (chunk, after) = after.split_at(size);
        body.extend_from_slice(chunk);
        rest = after.get(2..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_and_without_chunks() {
        let plain = parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!(plain, (503, b"no".to_vec()));
        let chunked =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(chunked.unwrap(), (200, b"abcde".to_vec()));
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
