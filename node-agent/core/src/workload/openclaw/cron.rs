//! What OpenClaw says of its scheduler: the list that the projection plugin puts, and the answers of `cron.status` and
//! `cron.list` over the admin RPC (2026.9.6: `dist/cron-*.mjs`, `src/gateway/server-methods/cron-list-projection.ts`).
//!
//! A job counts when the cell has to be woken for it: enabled, with a next run before the year 10000. The gateway's own jobs do not count unless
//! the user wants them: the heartbeat (`payload.kind` `heartbeat`, declared as `heartbeat:..` or `heartbeat-task:..`), the
//! weekly skill review (declared as `skill-collection-review:..`) and memory dreaming (by its name: it has no
//! declaration). They still run whenever the cell is up. The user's switch is
//! `plugins.entries.wake-projection.config.builtInJobs` in openclaw.json.

use berth_shared::time::UnixMs;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Reply, TOLD_CHARS_MAX, WORD_CHARS_MAX, told};
use crate::schedule::{JOBS_MAX, Schedule};

/// Most characters of a parser's words: with what stands before them they are a text of [`TOLD_CHARS_MAX`].
const SHAPE_CHARS_MAX: usize = TOLD_CHARS_MAX - 100;

/// Largest list that the projection may put, in bytes.
pub const PROJECTION_BYTES_MAX: usize = 256 * 1024;

/// The version of the list that the plugin puts.
const PROJECTION_VERSION: u32 = 1;

/// The latest time that JavaScript has (ECMA-262, Time Values).
const TIME_MAX: u64 = 8_640_000_000_000_000;

/// Longest id, name or declaration that is read, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// Jobs of one page of `cron.list`: a page of compact jobs with names of usual length is well below the bound on answers.
const PAGE_JOBS: usize = 40;

/// Most pages that are asked for.
pub const PAGES_MAX: usize = JOBS_MAX / PAGE_JOBS;

const HEARTBEAT_KIND: &str = "heartbeat";
const OWN_DECLARATIONS: [&str; 3] = ["heartbeat:", "heartbeat-task:", "skill-collection-review:"];
const OWN_NAMES: [&str; 3] = ["Memory Dreaming Promotion", "Memory Light Dreaming", "Memory REM Dreaming"];

/// Why a list is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProjectionError {
    /// It is no list of the plugin.
    #[error("the list cannot be read: {0}")]
    Shape(String),
    /// It is of a plugin of another version.
    #[error("the list is of version {0}")]
    Version(u32),
    /// It has too many jobs.
    #[error("the list has more than {JOBS_MAX} jobs")]
    TooMany,
    /// A time or a text in it cannot be.
    #[error("a job of the list has an impossible {0}")]
    Job(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Projection {
    version: u32,
    built_in_jobs: bool,
    jobs: Vec<Projected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Projected {
    id: String,
    name: Option<String>,
    declaration_key: Option<String>,
    payload_kind: Option<String>,
    next_run_at_ms: u64,
}

/// Reads the list that the plugin puts: enabled jobs with a next run, all of them.
///
/// # Errors
/// It is not exactly such a list. Nothing of it is believed then.
pub fn read_projection(body: &[u8]) -> Result<Schedule, ProjectionError> {
    let list: Projection = serde_json::from_slice(body)
        .map_err(|error| ProjectionError::Shape(told(&error.to_string(), SHAPE_CHARS_MAX)))?;
    if list.version != PROJECTION_VERSION {
        return Err(ProjectionError::Version(list.version));
    }
    if list.jobs.len() > JOBS_MAX {
        return Err(ProjectionError::TooMany);
    }
    let mut jobs = Vec::with_capacity(list.jobs.len());
    for job in &list.jobs {
        let texts =
            [Some(&job.id), job.name.as_ref(), job.declaration_key.as_ref(), job.payload_kind.as_ref()];
        if job.id.is_empty() || texts.iter().flatten().any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(ProjectionError::Job("text"));
        }
        if job.next_run_at_ms > TIME_MAX {
            return Err(ProjectionError::Job("time"));
        }
        let is_own = is_own(&job.name, &job.declaration_key, &job.payload_kind);
        jobs.push((UnixMs(job.next_run_at_ms), list.built_in_jobs || !is_own));
    }
    Ok(Schedule::new(jobs))
}

fn is_own(name: &Option<String>, declaration: &Option<String>, kind: &Option<String>) -> bool {
    let declared =
        declaration.as_ref().is_some_and(|key| OWN_DECLARATIONS.iter().any(|own| key.starts_with(own)));
    declared
        || kind.as_deref() == Some(HEARTBEAT_KIND)
        || name.as_deref().is_some_and(|name| OWN_NAMES.contains(&name))
}

/// Body of `cron.status`.
pub fn status_body() -> String {
    json!({ "method": "cron.status" }).to_string()
}

/// Body of one page of `cron.list`: enabled jobs, the next to run first, without what they say and where to.
pub fn list_body(offset: u64) -> String {
    let params = json!({
        "compact": true, "enabled": "enabled", "sortBy": "nextRunAtMs", "sortDir": "asc",
        "limit": PAGE_JOBS, "offset": offset,
    });
    json!({ "method": "cron.list", "params": params }).to_string()
}

fn payload(status: u16, body: &[u8]) -> Result<Value, String> {
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else {
        return Err(format!("the answer ({status}) is not the RPC's JSON"));
    };
    if !reply.ok {
        let code = reply.error.get("code").and_then(Value::as_str).unwrap_or("no code");
        let message = reply.error.get("message").and_then(Value::as_str).unwrap_or("no message");
        return Err(told(&format!("{code}: {message}"), TOLD_CHARS_MAX));
    }
    Ok(reply.payload)
}

/// Reads the answer to `cron.status`: when the scheduler itself means to wake next, for any job.
///
/// # Errors
/// It cannot be understood; in words.
pub fn judge_status(status: u16, body: &[u8]) -> Result<Option<UnixMs>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        enabled: bool,
        next_wake_at_ms: Option<u64>,
    }
    let payload = payload(status, body)?;
    if payload.get("nextWakeAtMs").is_none() {
        return Err("a `cron.status` without nextWakeAtMs".to_owned());
    }
    let status: Status =
        serde_json::from_value(payload).map_err(|_| "a `cron.status` of another shape".to_owned())?;
    let next = status.next_wake_at_ms.filter(|_| status.enabled).map(UnixMs);
    // Of a later one the lists know nothing.
    Ok(next.filter(|at| *at <= UnixMs::LAST_IN_WORDS))
}

/// One page of `cron.list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// When its jobs run next, and whether they count.
    pub jobs: Vec<(UnixMs, bool)>,
    /// Where the next page begins, `None` behind the last.
    pub next: Option<u64>,
}

/// Reads a page. `built_in_wanted`: the user's switch.
///
/// # Errors
/// It cannot be understood; in words.
pub fn judge_page(status: u16, body: &[u8], offset: u64, built_in_wanted: bool) -> Result<Page, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Listed {
        name: Option<String>,
        declaration_key: Option<String>,
        enabled: bool,
        next_run_at_ms: Option<u64>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Listing {
        jobs: Vec<Listed>,
        has_more: bool,
        next_offset: Option<u64>,
    }
    let page: Listing = serde_json::from_value(payload(status, body)?)
        .map_err(|_| "a `cron.list` of another shape".to_owned())?;
    let next = if page.has_more { page.next_offset } else { None };
    if page.has_more && next.is_none_or(|next| next <= offset) {
        return Err(told("a `cron.list` that does not go on", WORD_CHARS_MAX * 2));
    }
    let jobs = page.jobs.iter().filter(|job| job.enabled).filter_map(|job| {
        let due = job.next_run_at_ms.filter(|at| *at <= TIME_MAX)?;
        Some((UnixMs(due), built_in_wanted || !is_own(&job.name, &job.declaration_key, &None)))
    });
    Ok(Page { jobs: jobs.collect(), next })
}

/// Does the scheduler's own word bear out the list that is held, so that it need not be asked for all of it? The word is on the
/// next of any job. Where that is one of the gateway's own, or not the first that is held, nothing is said of those that the
/// cell is woken for: a list of long ago has times before any that the scheduler names.
pub fn bears_out(own_word: Option<UnixMs>, held: &Schedule) -> bool {
    own_word.is_none_or(|own| held.first() == Some(own) && held.next_of_any() == Some(own))
}

/// Does the list that the scheduler has just given have what it means to wake for? A job that it does not have, or has later,
/// would be slept over; one that it has earlier is due.
pub fn agrees(list: &Schedule, own_word: Option<UnixMs>) -> bool {
    match (own_word, list.next_of_any()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(own), Some(next)) => next <= own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(jobs: Value, built_in: bool) -> Result<Schedule, ProjectionError> {
        let body = json!({ "version": 1, "builtInJobs": built_in, "jobs": jobs });
        read_projection(body.to_string().as_bytes())
    }

    fn job(name: &str, declaration: Option<&str>, kind: &str, next: u64) -> Value {
        json!({ "id": "x", "name": name, "declarationKey": declaration, "payloadKind": kind, "nextRunAtMs": next })
    }

    #[test]
    fn the_gateways_own_jobs_count_only_where_the_user_wants_them() {
        let jobs = json!([
            job("Memory Dreaming Promotion", None, "agentTurn", 10),
            job("skill-collection-review-main", Some("skill-collection-review:main"), "agentTurn", 20),
            job("heartbeat", Some("heartbeat:main"), "heartbeat", 30),
            job("water the plants", None, "agentTurn", 40),
            job("ring", None, "systemEvent", 50),
        ]);
        let plain = list(jobs.clone(), false).unwrap();
        assert_eq!(
            (plain.jobs(), plain.first(), plain.next_of_any()),
            (2, Some(UnixMs(40)), Some(UnixMs(10)))
        );
        let all = list(jobs, true).unwrap();
        assert_eq!((all.jobs(), all.first()), (5, Some(UnixMs(10))));
    }

    #[test]
    fn a_job_that_no_text_can_name_is_none() {
        let last = UnixMs::LAST_IN_WORDS.0;
        let late = |next| job("late", None, "agentTurn", next);
        let told = list(json!([late(last + 1), late(TIME_MAX)]), false).unwrap();
        assert_eq!((told.jobs(), told.first(), told.next_of_any()), (0, None, None));
        let status = json!({ "ok": true, "payload": { "enabled": true, "nextWakeAtMs": last + 1 } });
        let own_word = judge_status(200, status.to_string().as_bytes()).unwrap();
        assert!(own_word.is_none() && agrees(&told, own_word), "nor does it keep the cell awake");
        assert_eq!(list(json!([late(last)]), false).unwrap().first(), Some(UnixMs(last)));
    }

    #[test]
    fn a_list_is_believed_only_in_its_exact_shape() {
        let good = job("a", None, "agentTurn", 40);
        assert!(list(json!([good]), false).is_ok());
        for (key, wrong) in [
            ("id", json!("")),
            ("id", json!(7)),
            ("nextRunAtMs", json!(-1)),
            ("nextRunAtMs", json!(1.5)),
            ("nextRunAtMs", json!(TIME_MAX + 1)),
            ("nextRunAtMs", Value::Null),
            ("name", json!("n".repeat(513))),
            ("more", json!(1)),
        ] {
            let mut bad = good.clone();
            bad[key] = wrong.clone();
            assert!(list(json!([bad]), false).is_err(), "{key}: {wrong}");
        }
        assert_eq!(list(json!(vec![good; 1001]), false), Err(ProjectionError::TooMany));
        let other = br#"{"version":2,"builtInJobs":false,"jobs":[]}"#;
        assert_eq!(read_projection(other), Err(ProjectionError::Version(2)));
        for bad in ["", "[]", "{}", "null", "\u{0}", r#"{"version":1,"jobs":[]}"#] {
            assert!(matches!(read_projection(bad.as_bytes()), Err(ProjectionError::Shape(_))), "{bad}");
        }
    }

    #[test]
    fn the_schedulers_own_word_is_read_exactly() {
        let status = |payload: Value| {
            judge_status(200, json!({ "ok": true, "payload": payload }).to_string().as_bytes())
        };
        let full = json!({ "enabled": true, "jobs": 3, "nextWakeAtMs": 1000, "storage": "sqlite" });
        assert_eq!(status(full), Ok(Some(UnixMs(1000))));
        assert_eq!(status(json!({ "enabled": true, "nextWakeAtMs": null })), Ok(None));
        assert_eq!(status(json!({ "enabled": false, "nextWakeAtMs": 1000 })), Ok(None));
        for bad in [json!({}), json!({ "enabled": true }), json!({ "nextWakeAtMs": "soon", "enabled": true })]
        {
            assert!(status(bad).is_err());
        }
        let refused = br#"{"ok":false,"error":{"code":"UNAVAILABLE","message":"a\u001b[31mb"}}"#;
        assert_eq!(judge_status(503, refused), Err("UNAVAILABLE: a [31mb".to_owned()));
        assert!(judge_status(200, b"<!doctype html>").is_err());
    }

    #[test]
    fn pages_are_followed_and_one_that_leads_nowhere_is_refused() {
        let page = |payload: Value, offset| {
            judge_page(200, json!({ "ok": true, "payload": payload }).to_string().as_bytes(), offset, false)
        };
        let jobs = json!([
            { "id": "a", "name": "mine", "enabled": true, "nextRunAtMs": 7 },
            { "id": "b", "name": "off", "enabled": false, "nextRunAtMs": 6 },
            { "id": "c", "name": "on exit", "enabled": true, "nextRunAtMs": null },
            { "id": "d", "name": "h", "declarationKey": "heartbeat:main", "enabled": true, "nextRunAtMs": 5 },
        ]);
        let last =
            page(json!({ "jobs": jobs, "hasMore": false, "nextOffset": null, "total": 4 }), 0).unwrap();
        assert_eq!(last, Page { jobs: vec![(UnixMs(7), true), (UnixMs(5), false)], next: None });
        assert_eq!(page(json!({ "jobs": [], "hasMore": true, "nextOffset": 40 }), 0).unwrap().next, Some(40));
        for nowhere in [json!(0), json!(null), json!(40)] {
            assert!(page(json!({ "jobs": [], "hasMore": true, "nextOffset": nowhere }), 40).is_err());
        }
        assert!(page(json!({ "jobs": 7, "hasMore": false }), 0).is_err());
    }

    #[test]
    fn a_list_is_borne_out_only_by_the_first_job_that_wakes_the_cell() {
        let mine = |at: &[u64]| Schedule::new(at.iter().map(|at| (UnixMs(*at), true)));
        assert!(bears_out(Some(UnixMs(50)), &mine(&[50, 60])) && bears_out(None, &mine(&[50])));
        // The job of 10 has run, one of 30 is new, and the list was not told since.
        for own in [30, 49, 51, 60] {
            assert!(!bears_out(Some(UnixMs(own)), &mine(&[10, 50])), "{own}");
        }
        let behind = Schedule::new([(UnixMs(20), false), (UnixMs(50), true)]);
        assert!(!bears_out(Some(UnixMs(20)), &behind), "there may be one of 30 by now");
        assert!(!bears_out(Some(UnixMs(50)), &behind));
        assert!(!bears_out(Some(UnixMs(50)), &Schedule::default()));
    }

    #[test]
    fn a_list_that_would_sleep_over_a_job_does_not_agree() {
        let held = Schedule::new([(UnixMs(50), true), (UnixMs(20), false)]);
        assert!(agrees(&held, Some(UnixMs(20))) && agrees(&held, Some(UnixMs(30))) && agrees(&held, None));
        assert!(!agrees(&held, Some(UnixMs(19))));
        assert!(!agrees(&Schedule::default(), Some(UnixMs(19))));
    }
}
