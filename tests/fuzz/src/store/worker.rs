//! What workers write and are asked. A worker runs as the user of a hostile cell: nothing that it says is believed but whole
//! lines, and none of it commands a terminal.

use berth_node_agent::fuzz as agent;
use berth_node_agent_core::restic::Part;
use berth_shared::repository::{Object, ObjectKind};
use berth_snapshot::Reason;
use berth_snapshot::caller::{Done, WorkerFailed};
use berth_snapshot::fuzz::{self as snapshot, ASK_BYTES_MAX, DETAIL_BYTES_MAX};
use berth_snapshot::protocol::{Ask, LINE_BYTES_MAX, Line, Outcome, SnapshotLine, VERSION};
use berth_snapshot::store::Traffic;
use serde_json::{Value, json};

use crate::input::{Input, seed};

/// Longest output that is made of a repeated part: more than one line may have.
const OUTPUT_BYTES_MAX: usize = 160 << 10;

/// Stands where the part is repeated. In no JSON.
const REPEATED_HERE: u8 = 0xff;

/// How it ended, the length of the pieces, how often the part is repeated; a line of standard error; the part, in a line;
/// standard output.
pub(super) fn run(mut input: Input<'_>) {
    let (status, piece, times) = (i32::from(input.byte()), usize::from(input.short()).max(1), input.short());
    let (stderr, part) = (input.line(), input.line());
    let stdout = repeated(input.rest(), part, usize::from(times));
    let (lines, ended) = snapshot::worker((&stdout, stderr), status, piece);
    let (handed_on, last) = expected(&stdout);
    assert_eq!(lines.len(), handed_on.len());
    assert!(lines.iter().zip(&handed_on).all(|(line, said)| is_said(line, said)), "{lines:?}");
    judged(&ended, last.as_ref(), status);
    given_out(lines);
}

fn repeated(output: &[u8], part: &[u8], times: usize) -> Vec<u8> {
    let times = times.min(OUTPUT_BYTES_MAX / part.len().max(1));
    let (before, after) = match output.iter().position(|byte| *byte == REPEATED_HERE) {
        Some(at) => (output.get(..at).unwrap_or_default(), output.get(at + 1..).unwrap_or_default()),
        None => (output, &[][..]),
    };
    [before, &part.repeat(times), after].concat()
}

/// The simple way: lines that are handed on, and the last one, if all of it was lines.
fn expected(stdout: &[u8]) -> (Vec<Line>, Option<Line>) {
    let (mut lines, mut last) = (vec![], None);
    for (number, text) in stdout.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let is_line = text.len() <= LINE_BYTES_MAX && text.ends_with(b"\n");
        let Some(line) = is_line.then(|| serde_json::from_slice(text).ok()).flatten() else {
            return (lines, None);
        };
        match (number, line) {
            (0, Line::Hello { version: VERSION }) => {}
            (0, _) => return (lines, None),
            (_, line @ (Line::Done { .. } | Line::Failed { .. })) => last = Some(line),
            (_, line) => lines.push(line),
        }
    }
    (lines, last)
}

/// Is this what was said, with its text for people made harmless?
fn is_said(line: &Line, said: &Line) -> bool {
    match (line, said) {
        (Line::Unanswered { reason, detail }, Line::Unanswered { reason: said, .. }) => {
            harmless(detail);
            reason == said
        }
        (line, said) => line == said,
    }
}

/// It goes into logs, tables and onto terminals.
pub(super) fn harmless(text: &str) {
    assert!(text.len() <= DETAIL_BYTES_MAX, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn judged(ended: &Result<Done, WorkerFailed>, last: Option<&Line>, status: i32) {
    let done = match last {
        Some(Line::Done { outcome, traffic, memory_bytes_peak }) if status == 0 => {
            Some((outcome, traffic, memory_bytes_peak))
        }
        _ => None,
    };
    let got = ended.as_ref().ok().map(|done| (&done.outcome, &done.traffic, &done.memory_bytes_peak));
    assert_eq!(got, done, "only a result with a good end is one");
    if let Err(failed) = ended {
        harmless(&failed.detail);
        let reason = if let Some(Line::Failed { reason, .. }) = last { *reason } else { Reason::Died };
        assert_eq!(failed.reason, reason);
    }
}

/// The lines as an owner's answer: nothing that is not whole ends as if it were, and an object holds its data alone.
fn given_out(lines: Vec<Line>) {
    let mut rest = lines.into_iter();
    let Some(first) = rest.next() else { return };
    let rest: Vec<Line> = rest.collect();
    let all = || std::iter::once(&first).chain(&rest);
    let answer: Vec<&Line> = all().take_while(|line| !matches!(line, Line::Answered)).collect();
    let is_answered = answer.len() < all().count();
    let part = Some(Part { from: u64::MAX - 7, to: None });
    let Some((head, body, whole)) = agent::given_out(first.clone(), rest.clone(), part, false) else {
        panic!("no answer can be written of {first:?}");
    };
    let is_object = matches!(first, Line::Object { .. });
    let fits = |line: &&Line| match line {
        Line::Data { base64 } => is_object && data_encoding::BASE64.decode(base64.as_bytes()).is_ok(),
        Line::Listed { .. } => !is_object,
        _ => false,
    };
    let is_right = is_answered && answer.iter().skip(usize::from(is_object)).all(fits);
    assert_eq!(whole, is_right, "what is not whole ends as such, and nothing else does");
    assert!(head.headers.len() <= 4);
    if !whole {
        return;
    }
    if is_object {
        let data = answer.iter().skip(1).map(|line| match line {
            Line::Data { base64 } => data_encoding::BASE64.decode(base64.as_bytes()).expect("it was whole"),
            other => panic!("{other:?} in an object"),
        });
        assert_eq!(body, data.collect::<Vec<_>>().concat());
    } else {
        let listed = answer.iter().map(|line| match line {
            Line::Listed { name, bytes } => json!({ "name": name, "size": bytes }),
            other => panic!("{other:?} in a listing"),
        });
        let read: Value = serde_json::from_slice(&body).expect("a listing is JSON");
        assert_eq!(read, Value::from(listed.collect::<Vec<_>>()));
    }
}

/// Whole lines of a bound are asks, each the same when it is asked again; nothing behind what is none is looked at.
pub(super) fn asks(stream: &[u8]) {
    let (asks, to_the_end) = snapshot::asks(stream);
    let mut expected = vec![];
    let lines: Vec<&[u8]> = stream.split_inclusive(|byte| *byte == b'\n').collect();
    for line in &lines {
        let is_line = line.len() as u64 <= ASK_BYTES_MAX && line.ends_with(b"\n");
        let Some(ask) = is_line.then(|| serde_json::from_slice::<Ask>(line).ok()).flatten() else { break };
        let again = serde_json::to_vec(&ask).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Ask>(&again).ok().as_ref(), Some(&ask));
        expected.push(ask);
    }
    assert_eq!(to_the_end, expected.len() == lines.len());
    assert_eq!(asks, expected);
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| serde_json::to_string(line).expect("it has JSON") + "\n").collect()
}

/// Inputs to begin with.
pub(super) fn seeds(snapshot: &SnapshotLine) -> Vec<Vec<u8>> {
    let hello = Line::Hello { version: VERSION };
    let data = |text: &str| Line::Data { base64: data_encoding::BASE64.encode(text.as_bytes()) };
    let done = |count| Line::Done {
        outcome: Outcome::Told { count },
        traffic: Traffic::default(),
        memory_bytes_peak: 7,
    };
    let listed = |name: &str| Line::Listed { name: name.repeat(64), bytes: 7 };
    let failed =
        Line::Failed { reason: Reason::Source, detail: "could not read `\u{1b}[2J\n` of the folder".into() };
    let unanswered = Line::Unanswered { reason: Reason::NotFound, detail: "\u{7}".repeat(500) };
    let with = |status: u8, piece: u16, times: u16, stderr: &str, part: &str, output: &[u8]| {
        let [a, b] = piece.to_le_bytes();
        let [c, d] = times.to_le_bytes();
        seed(
            4,
            [&[status, a, b, c, d][..], stderr.as_bytes(), b"\n", part.as_bytes(), b"\n", output].concat(),
        )
    };
    let plain = |lines: &[Line]| with(0, 16, 0, "", "", text(lines).as_bytes());
    let begun = text(std::slice::from_ref(&hello));
    // A line that goes on and on, and ends at last.
    let long = [begun.as_bytes(), br#"{"line":"data","base64":""#, &[REPEATED_HERE], b"\"}\n"].concat();
    let deep = [begun.as_bytes(), br#"{"line":"entry","x":"#, &[REPEATED_HERE], b"}\n"].concat();
    let mut seeds = vec![
        plain(&[hello.clone(), Line::Snapshot(snapshot.clone()), done(1)]),
        plain(&[hello.clone(), Line::Progress { entries: 1, bytes: 2 }, failed.clone()]),
        plain(&[
            hello.clone(),
            Line::Object { bytes: 5, total: 9 },
            data("12"),
            data("345"),
            Line::Answered,
            done(1),
        ]),
        plain(&[hello.clone(), listed("a"), listed("b"), Line::Answered, unanswered, done(1)]),
        plain(&[hello.clone(), Line::Folder { name: "usr_x".into() }, done(1)]),
        with(9, 3, 0, "thread panicked \u{1b}[2J", "", text(&[hello, failed]).as_bytes()),
        with(0, 4096, 60_000, "", "AA", &long),
        with(0, 4096, 8_000, "", "AAAA", &long),
        with(0, 4096, 20_000, "", "[[", &deep),
        with(0, 1, 0, "", "", b"{\"line\":\"hello\",\"version\":2}\n"),
    ];
    let object: Object =
        format!("data/{}", "0123456789abcdef".repeat(4)).parse().expect("an object, written here");
    let asks = [
        Ask::List(ObjectKind::Snapshots),
        Ask::Size(Object::Config),
        Ask::Object { object: object.clone(), from: 3, to: None },
        Ask::Object { object, from: 3, to: Some(5) },
    ];
    let asks = asks.map(|ask| serde_json::to_string(&ask).expect("it has JSON") + "\n").concat();
    let blanks = " ".repeat(ASK_BYTES_MAX.try_into().unwrap_or(0));
    seeds.extend([seed(5, &asks), seed(5, format!("{}{blanks}\n", asks.lines().next().unwrap_or_default()))]);
    seeds
}
