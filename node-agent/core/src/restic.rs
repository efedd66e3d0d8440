//! What of restic's REST interface an owner gets of their own repository, below [`PATH`]: reading, and nothing else.
//!
//! | asked for | answer |
//! |---|---|
//! | `GET`, `HEAD` of `config`, `KIND/NAME` | the object; [`Want::Object`], [`Want::Size`] |
//! | `GET KIND/` | names and sizes of the kind's objects; [`Want::List`] |
//! | `GET locks/` | there are none; [`Want::NoLocks`] |
//! | `POST`, `DELETE` of `locks/NAME` | taken, and kept nowhere: without a lock restic does not read. [`Want::Lock`] |
//! | any other method on one of these, or on [`PATH`] itself | [`Refusal::ReadOnly`] |
//! | anything else | [`Refusal::Unknown`] |
//!
//! Owned by the ingress, which strangers reach, and asked again by the agent. Paths are taken as they are: nothing is
//! decoded, joined or normalised, so what is not exactly one of these is none of these.

use berth_shared::repository::{Object, ObjectKind, ObjectName};

/// Where the interface begins on a user's host name.
pub const PATH: &str = berth_shared::repository::RESTIC_PATH;

/// Content type of a listing: an array of objects with `name` and `size`.
pub const LIST_TYPE: &str = "application/vnd.x.restic.rest.v2";

/// Which part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its first byte.
    pub from: u64,
    /// Its last byte; `None`: to the end.
    pub to: Option<u64>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// The names and sizes of all objects of a kind.
    List(ObjectKind),
    /// How large an object is.
    Size(Object),
    /// An object, or a part of it.
    Object(Object, Option<Part>),
    /// The names of all locks.
    NoLocks,
    /// A lock is set or taken away.
    Lock,
}

/// Why it is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// There is nothing of this name.
    Unknown,
    /// Something would be changed.
    ReadOnly,
    /// A part that no object has.
    Range,
}

/// What a request wants. `path` is what stands behind [`PATH`], `range` the header of that name.
///
/// # Errors
/// It is not given.
pub fn want(method: &str, path: &str, range: Option<&str>) -> Result<Want, Refusal> {
    let read_only = Err(Refusal::ReadOnly);
    if path.is_empty() {
        // Where a repository is made (`?create=true`) or removed.
        return if matches!(method, "GET" | "HEAD") { Err(Refusal::Unknown) } else { read_only };
    }
    if let Ok(object) = path.parse::<Object>() {
        return match method {
            "GET" => Ok(Want::Object(object, range.map(part).transpose()?)),
            "HEAD" => Ok(Want::Size(object)),
            _ => read_only,
        };
    }
    let (folder, name) = path.split_once('/').ok_or(Refusal::Unknown)?;
    let locks = folder == "locks";
    if name.is_empty() {
        return match (method, folder.parse::<ObjectKind>()) {
            ("GET", Ok(kind)) => Ok(Want::List(kind)),
            ("GET", Err(_)) if locks => Ok(Want::NoLocks),
            ("HEAD", _) => Err(Refusal::Unknown),
            (_, found) if locks || found.is_ok() => read_only,
            _ => Err(Refusal::Unknown),
        };
    }
    match (method, name.parse::<ObjectName>()) {
        ("POST" | "DELETE", Ok(_)) if locks => Ok(Want::Lock),
        ("GET" | "HEAD", _) | (_, Err(_)) => Err(Refusal::Unknown),
        _ if locks => read_only,
        _ => Err(Refusal::Unknown),
    }
}

/// `bytes=FIRST-LAST` or `bytes=FIRST-`, which is all that restic asks for.
fn part(range: &str) -> Result<Part, Refusal> {
    let (from, to) =
        range.strip_prefix("bytes=").and_then(|part| part.split_once('-')).ok_or(Refusal::Range)?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten().ok_or(Refusal::Range)
    };
    let from = number(from)?;
    let to = if to.is_empty() { None } else { Some(number(to)?) };
    if to.is_some_and(|to| to < from) {
        return Err(Refusal::Range);
    }
    Ok(Part { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn whatever_restic_reads_is_given() {
        let name = hex();
        let object: Object = format!("data/{name}").parse().unwrap();
        let data = format!("data/{name}");
        assert_eq!(want("HEAD", "config", None), Ok(Want::Size(Object::Config)));
        assert_eq!(want("GET", "config", None), Ok(Want::Object(Object::Config, None)));
        assert_eq!(want("HEAD", &data, Some("bytes=0-")), Ok(Want::Size(object.clone())));
        let part = |from, to| Ok(Want::Object(object.clone(), Some(Part { from, to })));
        assert_eq!(want("GET", &data, Some("bytes=0-")), part(0, None));
        assert_eq!(want("GET", &data, Some("bytes=5-5")), part(5, Some(5)));
        for kind in ObjectKind::ALL {
            assert_eq!(want("GET", &format!("{}/", kind.as_str()), None), Ok(Want::List(kind)));
        }
    }

    #[test]
    fn a_lock_is_taken_and_none_is_there() {
        let lock = format!("locks/{}", hex());
        assert_eq!(want("POST", &lock, None), Ok(Want::Lock));
        assert_eq!(want("DELETE", &lock, None), Ok(Want::Lock));
        assert_eq!(want("GET", "locks/", None), Ok(Want::NoLocks));
        for method in ["GET", "HEAD"] {
            assert_eq!(want(method, &lock, None), Err(Refusal::Unknown));
        }
        assert_eq!(want("PUT", &lock, None), Err(Refusal::ReadOnly));
        assert_eq!(want("POST", "locks/../keys", None), Err(Refusal::Unknown));
        assert_eq!(want("DELETE", &format!("locks/{}/", hex()), None), Err(Refusal::Unknown));
    }

    #[test]
    fn nothing_that_changes_anything_goes_through() {
        let name = hex();
        let mut paths = vec![String::new(), "config".to_owned(), "locks/".to_owned()];
        for kind in ObjectKind::ALL {
            paths.push(format!("{}/", kind.as_str()));
            paths.push(format!("{}/{name}", kind.as_str()));
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get", ""] {
            for path in &paths {
                assert_eq!(want(method, path, None), Err(Refusal::ReadOnly), "{method} {path}");
            }
        }
    }

    #[test]
    fn no_other_path_means_anything() {
        let name = hex();
        for path in [
            "/".to_owned(),
            "/config".into(),
            "config/".into(),
            "config/config".into(),
            "data".into(),
            "data//".into(),
            format!("data//{name}"),
            format!("data/{name}/"),
            format!("data/{name}/.."),
            format!("data/../keys/{name}"),
            format!("data/01/{name}"),
            format!("data%2f{name}"),
            format!("%64ata/{name}"),
            "%2e%2e/config".into(),
            "../config".into(),
            "./config".into(),
            "keys/..".into(),
            format!("keys/{}", name.to_uppercase()),
            format!("keys/{}", &name[..63]),
            format!("keys/{}", "a".repeat(64 * 1024)),
            format!("users/{name}"),
            "orphans/".into(),
            "LOCKS/".into(),
            "data/é".into(),
        ] {
            for method in ["GET", "HEAD", "POST", "DELETE"] {
                assert_eq!(want(method, &path, None), Err(Refusal::Unknown), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_part_is_from_somewhere_on() {
        let most = u64::MAX.to_string();
        assert_eq!(part(&format!("bytes={most}-{most}")), Ok(Part { from: u64::MAX, to: Some(u64::MAX) }));
        for bad in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=-5",
            "bytes=5-4",
            "bytes=+5-",
            "bytes=0-1,3-4",
            "bytes=0-0x1",
            "bytes= 0-",
            "items=0-1",
            "bytes=18446744073709551616-",
        ] {
            assert_eq!(part(bad), Err(Refusal::Range), "{bad}");
        }
    }
}
