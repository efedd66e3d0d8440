//! A small relay that everybody passes through on the way to the store: it can make the way longer, and it counts what goes
//! by, the same for each tool and each server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What went by since the relay began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    /// Requests, whatever they ask for.
    pub(crate) requests: u64,
    /// Bytes of requests' bodies.
    pub(crate) bytes_up: u64,
    /// Bytes that the store sent, heads of answers too.
    pub(crate) bytes_down: u64,
}

impl Traffic {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            bytes_up: self.bytes_up - before.bytes_up,
            bytes_down: self.bytes_down - before.bytes_down,
        }
    }
}

#[derive(Debug, Default)]
struct Counted {
    requests: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    /// A body without a length was seen: nothing behind it can be counted.
    lost: AtomicBool,
}

/// Runs as long as the process.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    counted: Arc<Counted>,
}

impl Relay {
    /// Passes connections on to `to`, each piece so much later in each direction.
    pub(crate) fn start(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Arc::new(Counted::default());
        let counting = Arc::clone(&counted);
        let thread = std::thread::Builder::new();
        let _runs_to_the_end = thread.spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(to).unwrap();
                let (up, down) = (Arc::clone(&counting), Arc::clone(&counting));
                let mut requests = Requests::default();
                let (from, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                pump(from, server, delay, move |bytes| requests.pass(bytes, &up));
                pump(back, client, delay, move |bytes| add(&down.bytes_down, bytes.len()));
            }
        });
        Self { address, counted }
    }

    /// What went by.
    pub(crate) fn traffic(&self) -> Traffic {
        assert!(!self.counted.lost.load(Ordering::Relaxed), "a request had a body without a length");
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: get(&self.counted.requests),
            bytes_up: get(&self.counted.bytes_up),
            bytes_down: get(&self.counted.bytes_down),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    delay: Duration,
    mut count: impl FnMut(&[u8]) + Send + 'static,
) {
    to.set_nodelay(true).unwrap();
    let reader = std::thread::Builder::new();
    if delay.is_zero() {
        let _ends_with_its_connection = reader.spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                count(&buffer[..read]);
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _gone = to.shutdown(Shutdown::Write);
        });
        return;
    }
    let (send, receive) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(4096);
    let _ends_with_its_connection = reader.spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            count(&buffer[..read]);
            if send.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    let writer = std::thread::Builder::new();
    let _ends_with_its_connection = writer.spawn(move || {
        for (due, bytes) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _gone = to.shutdown(Shutdown::Write);
    });
}

/// Where in what a client sends the relay is: in a request's head, or in so much of its body.
#[derive(Debug, Default)]
struct Requests {
    head: Vec<u8>,
    body_left: u64,
}

impl Requests {
    fn pass(&mut self, mut bytes: &[u8], counted: &Counted) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.body_left > 0 {
                let here = usize::try_from(self.body_left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.body_left -= here as u64;
                add(&counted.bytes_up, here);
                bytes = &bytes[here..];
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if self.head.ends_with(b"\r\n\r\n") {
                add(&counted.requests, 1);
                let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
                let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let length = value("content-length:").map_or(Ok(0), str::parse);
                match length {
                    Ok(length) if value("transfer-encoding:").is_none() => self.body_left = length,
                    _ => counted.lost.store(true, Ordering::Relaxed),
                }
                self.head.clear();
            }
        }
    }
}
