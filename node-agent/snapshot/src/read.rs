//! Objects as they lie in the store, one after the other: for owners who read their own repository with stock `restic`.
//! What is in them is not looked at; whoever reads them has the password and checks every byte.

use std::io::{BufRead, Read};
use std::sync::Arc;

use berth_shared::repository::{Object, ObjectName};

use crate::error::{Failure, Reason};
use crate::look::Say;
use crate::protocol::{ASK_BYTES_MAX, Ask, DATA_BYTES_MAX, Line};
use crate::store::{S3Store, StoreError};

/// So much of an object is fetched in one request, and held.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// The store's own word for a part that an object has not.
const NO_SUCH_RANGE: u16 = 416;

/// Answers until nothing more is asked. How many answers there were.
pub(crate) fn read(store: &Arc<S3Store>, input: &mut dyn BufRead, say: Say<'_>) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some(ask) = next(input)? {
        match answer(store, &ask, say) {
            Ok(()) => say(Line::Answered)?,
            Err(failure) => {
                say(Line::Unanswered { reason: reason(&failure), detail: failure.text() })?;
            }
        }
        count += 1;
    }
    Ok(count)
}

pub(crate) fn next(input: &mut dyn BufRead) -> Result<Option<Ask>, Failure> {
    let mut text = Vec::new();
    let read = input.take(ASK_BYTES_MAX).read_until(b'\n', &mut text);
    read.map_err(|error| Failure::bad_job(format!("standard input cannot be read: {error}")))?;
    if text.is_empty() {
        return Ok(None);
    }
    if !text.ends_with(b"\n") {
        return Err(Failure::bad_job("an ask is too long, or cut"));
    }
    let ask = serde_json::from_slice(&text).map_err(|_| Failure::bad_job("an ask cannot be read"))?;
    Ok(Some(ask))
}

/// What is asked for may well not be there, which says nothing of the repository.
fn reason(failure: &Failure) -> Reason {
    match failure {
        Failure::Store(StoreError::NotFound { .. }) => Reason::NotFound,
        other => other.reason(),
    }
}

/// Where an object lies. Packs are in 256 folders, which restic's REST interface does not have.
fn key(object: &Object) -> String {
    match object {
        Object::Named(berth_shared::repository::ObjectKind::Data, name) => {
            let name = name.as_str();
            format!("data/{}/{name}", name.get(..2).unwrap_or_default())
        }
        other => other.to_string(),
    }
}

fn answer(store: &S3Store, ask: &Ask, say: Say<'_>) -> Result<(), Failure> {
    match ask {
        Ask::List(kind) => {
            for (key, bytes) in store.list(&format!("{}/", kind.as_str()))? {
                // Whatever else lies there is not the repository's.
                let name = key.rsplit_once('/').and_then(|(_, name)| name.parse::<ObjectName>().ok());
                if let Some(name) = name {
                    say(Line::Listed { name: name.into(), bytes })?;
                }
            }
        }
        Ask::Size(object) => {
            let key = key(object);
            let total = store.head(&key)?.ok_or(StoreError::NotFound { key })?;
            say(Line::Object { bytes: 0, total })?;
        }
        Ask::Object { object, from, to } => part(store, &key(object), *from, to.unwrap_or(u64::MAX), say)?,
    }
    Ok(())
}

/// An object's bytes from the one to the other, that one included, or to its end: how many they are, then the bytes.
pub(crate) fn part(store: &S3Store, key: &str, from: u64, to: u64, say: Say<'_>) -> Result<(), Failure> {
    let window = |at: u64| to.min(at.saturating_add(WINDOW_BYTES - 1));
    let (mut bytes, total) = match store.part(key, from, window(from)) {
        Err(StoreError::Other { status: NO_SUCH_RANGE, .. }) => {
            // It has nothing from there on. How long it is tells whoever asks.
            let total = store.head(key)?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })?;
            return say(Line::Object { bytes: 0, total });
        }
        part => part?,
    };
    let end = total.min(to.saturating_add(1));
    say(Line::Object { bytes: end.saturating_sub(from), total })?;
    let mut at = from;
    loop {
        for part in bytes.chunks(DATA_BYTES_MAX) {
            say(Line::Data { base64: data_encoding::BASE64.encode(part) })?;
        }
        at = at.saturating_add(bytes.len() as u64);
        if at >= end || bytes.is_empty() {
            return Ok(());
        }
        let (next, now) = store.part(key, at, window(at).min(end - 1))?;
        if now != total {
            // Objects are written once.
            return Err(
                StoreError::Damaged { key: key.to_owned(), detail: "it has another length now" }.into()
            );
        }
        bytes = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_are_read_one_by_one_and_what_is_none_ends_it() {
        let name = "0123456789abcdef".repeat(4);
        let object: Object = format!("data/{name}").parse().unwrap();
        assert_eq!(key(&object), format!("data/01/{name}"));
        assert_eq!(key(&Object::Config), "config");
        let ask = Ask::Object { object, from: 3, to: None };
        let text = format!("{}\n", serde_json::to_string(&ask).unwrap());
        let mut input = text.as_bytes();
        assert_eq!(next(&mut input).unwrap(), Some(ask));
        assert_eq!(next(&mut input).unwrap(), None);
        for bad in [
            "\n".to_owned(),
            "{}\n".into(),
            text.replace("0123", "../."),
            text.replace("data", "locks"),
            format!("{}{text}", " ".repeat(2048)),
            format!("{}{}", text.trim_end(), " ".repeat(2048)),
            text.trim_end().to_owned(),
        ] {
            assert!(next(&mut bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
