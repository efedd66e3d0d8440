//! What the server does wrong, switched at run time, and what it has counted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Method;

/// One way in which a store fails. Holds until it is switched off, or for as many requests as were named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every request is answered with 500.
    InternalError,
    /// Every request is answered with 503 `SlowDown`.
    SlowDown,
    /// Every request waits so long before anything is done.
    Slow(Duration),
    /// The body of an object is half sent, then the connection ends.
    CutBody,
    /// A byte of an object's body is another one. Length and checksums say what they would have.
    WrongByte,
    /// Objects cannot be written: 403.
    RefuseWrites,
    /// Objects cannot be deleted: 403.
    RefuseDeletes,
    /// There is no room: 507, as Garage and MinIO answer.
    Full,
    /// Listings say that they go on, and not where.
    CutList,
    /// Listings say that they go on, each at the same place.
    EndlessList,
    /// Nothing is answered: connections end as soon as they have sent a request.
    Gone,
}

/// How many requests were seen, by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// PUT and POST: objects, parts, beginnings and ends of multipart uploads.
    pub writes: u64,
    /// GET of an object.
    pub reads: u64,
    /// GET of a bucket.
    pub lists: u64,
    /// HEAD.
    pub heads: u64,
    /// DELETE.
    pub deletes: u64,
    /// Bytes of the bodies of `writes`, as their headers say.
    pub bytes_in: u64,
}

/// The switches of a server.
#[derive(Debug, Default)]
pub struct Faults {
    on: Mutex<Option<(Fault, Option<u64>)>>,
    writes: AtomicU64,
    reads: AtomicU64,
    lists: AtomicU64,
    heads: AtomicU64,
    deletes: AtomicU64,
    bytes_in: AtomicU64,
}

/// What a request asks for, as far as faults care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Write,
    Read,
    List,
    Head,
    Delete,
}

impl Asked {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        // Path style: `/bucket` or `/bucket/` is the bucket itself, anything longer an object.
        let object = path.trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
        match *method {
            Method::GET if object => Self::Read,
            Method::GET => Self::List,
            Method::HEAD => Self::Head,
            Method::DELETE => Self::Delete,
            _ => Self::Write,
        }
    }
}

impl Faults {
    /// From now on, until [`Faults::clear`].
    pub fn set(&self, fault: Fault) {
        *self.lock() = Some((fault, None));
    }

    /// For the next `requests` requests that it can strike.
    pub fn set_for(&self, fault: Fault, requests: u64) {
        *self.lock() = Some((fault, Some(requests)));
    }

    /// All is well again.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    /// What was seen so far.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            writes: get(&self.writes),
            reads: get(&self.reads),
            lists: get(&self.lists),
            heads: get(&self.heads),
            deletes: get(&self.deletes),
            bytes_in: get(&self.bytes_in),
        }
    }

    pub(crate) fn count(&self, asked: Asked, bytes: u64) {
        let counter = match asked {
            Asked::Write => {
                self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
                &self.writes
            }
            Asked::Read => &self.reads,
            Asked::List => &self.lists,
            Asked::Head => &self.heads,
            Asked::Delete => &self.deletes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The fault that strikes this request, if any; counts down one that was set for some requests only.
    pub(crate) fn strikes(&self, asked: Asked) -> Option<Fault> {
        let mut on = self.lock();
        let (fault, left) = on.as_mut()?;
        let applies = match fault {
            Fault::InternalError | Fault::SlowDown | Fault::Slow(_) | Fault::Gone => true,
            Fault::CutBody | Fault::WrongByte => asked == Asked::Read,
            Fault::RefuseWrites | Fault::Full => asked == Asked::Write,
            Fault::RefuseDeletes => asked == Asked::Delete,
            Fault::CutList | Fault::EndlessList => asked == Asked::List,
        };
        if !applies {
            return None;
        }
        let fault = *fault;
        match left {
            None => {}
            Some(1) => *on = None,
            Some(left) => *left = left.saturating_sub(1),
        }
        Some(fault)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Fault, Option<u64>)>> {
        self.on.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_was_set_for_and_only_what_it_can() {
        let faults = Faults::default();
        faults.set_for(Fault::CutBody, 2);
        assert_eq!(faults.strikes(Asked::Write), None);
        assert_eq!(faults.strikes(Asked::Read), Some(Fault::CutBody));
        assert_eq!(faults.strikes(Asked::Read), Some(Fault::CutBody));
        assert_eq!(faults.strikes(Asked::Read), None);
    }

    #[test]
    fn a_bucket_is_told_from_its_objects() {
        for (method, path, asked) in [
            (Method::GET, "/berth", Asked::List),
            (Method::GET, "/berth/", Asked::List),
            (Method::GET, "/berth/u/config", Asked::Read),
            (Method::PUT, "/berth/u/config", Asked::Write),
            (Method::POST, "/berth/u/config", Asked::Write),
            (Method::HEAD, "/berth/u/config", Asked::Head),
            (Method::DELETE, "/berth/u/config", Asked::Delete),
        ] {
            assert_eq!(Asked::of(&method, path), asked, "{method} {path}");
        }
    }
}
