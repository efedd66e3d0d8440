//! What comes through an open WebSocket: bytes of a client and of a cell, in any pieces.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0, 1 | a client's or a cell's stream, whole and in pieces: the same frames, at the same places |
//! | 2 | a socket over rests and ticks: nothing is lost, overtaken, or said in the middle of something |
//! | 3 | a client's message: none that does something passes for a tab's own |

use std::mem::take;

use berth_node_agent_core::frames::{Ends, Frames, Kind, Sender, server_frame};
use berth_node_agent_core::socket::{Closing, Inward, Outward};
use berth_node_agent_core::workload::openclaw::methods;
use berth_shared::cell::Workload;
use berth_shared::time::UnixMs;
use serde_json::Value;

use crate::input::{Input, seed};

const NOW: UnixMs = UnixMs(1_763_683_200_000);

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(4) {
        0 => stream(Sender::Client, input),
        1 => stream(Sender::Cell, input),
        2 => socket(input),
        _ => message(input.rest()),
    }
}

/// Kind, payload and end of each frame, up to the first that breaks the rules; is it broken?
#[derive(Debug, PartialEq, Eq)]
struct Read {
    frames: Vec<(Kind, Vec<u8>, Ends)>,
    broken: bool,
}

fn read<'a>(sender: Sender, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let (mut frames, mut read, mut payload) = (Frames::of(sender), vec![], Vec::new());
    let (mut begun, mut open) = (false, None);
    for mut piece in pieces {
        loop {
            let before = piece.len();
            let part = match frames.next(&mut piece) {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(_) => return Read { frames: read, broken: true },
            };
            assert!(!part.bytes.is_empty() && part.bytes.len() == before - piece.len(), "a part of nothing");
            assert_eq!(part.begins, !begun, "a frame begins where the last one ended");
            payload.extend(part.payload());
            begun = part.ends == Ends::Nothing;
            assert_eq!(frames.is_between_frames(), !begun);
            if begun {
                continue;
            }
            if part.kind.is_control() {
                assert!(payload.len() <= 125 && part.ends == Ends::Frame, "a control frame that is none");
            } else {
                assert!(open.is_none_or(|open| open == part.kind), "two messages in one another");
                open = (part.ends == Ends::Frame).then_some(part.kind);
            }
            assert_eq!(frames.is_between_messages(), open.is_none());
            read.push((part.kind, take(&mut payload), part.ends));
        }
    }
    Read { frames: read, broken: false }
}

fn stream(sender: Sender, mut input: Input<'_>) {
    let size = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    assert_eq!(read(sender, [bytes]), read(sender, bytes.chunks(size)), "in pieces of {size}");
}

/// The whole frames of a stream that is known to be one.
fn whole(sender: Sender, bytes: &[u8]) -> Vec<(Kind, Vec<u8>, Ends)> {
    let read = read(sender, [bytes]);
    assert!(!read.broken, "nothing broken goes on");
    read.frames
}

/// Steps of two bytes: what happens, and how many bytes it is about.
fn socket(mut input: Input<'_>) {
    let length = usize::from(input.byte());
    let mut steps = Input::new(input.take(length));
    let length = usize::from(input.short());
    let mut from_client = Input::new(input.take(length));
    let mut from_cell = input;
    let (mut inward, mut outward) = (Inward::of(Workload::Openclaw), Outward::of(Workload::Openclaw));
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    let (mut cell, mut client) = (Vec::new(), Vec::new());
    let (mut rests, mut ticks, mut broken) = (false, 0_usize, false);
    while !steps.is_empty() {
        let (what, count) = (steps.choice(7), usize::from(steps.byte()));
        match what {
            0 => {
                let bytes = from_client.take(count);
                sent.extend(bytes);
                if inward.take(bytes, rests, &mut outward).is_err() {
                    outward.close(Closing::ClientBroke);
                    broken = true;
                    break;
                }
            }
            1 if !rests => {
                let bytes = from_cell.take(count);
                said.extend(bytes);
                if outward.take(bytes).is_err() {
                    outward.close(Closing::CellBroke);
                    break;
                }
            }
            2 if !rests => {
                let next = inward.next();
                let count = count.min(next.len());
                cell.extend(next.iter().take(count));
                inward.gone(count);
            }
            3 => {
                let next = outward.next();
                let count = count.min(next.len());
                client.extend(next.iter().take(count));
                outward.gone(count);
            }
            4 => rests = true,
            5 => rests = false,
            6 => ticks += usize::from(outward.tick(NOW)),
            _ => {}
        }
        assert!(inward.queued() <= sent.len() && (inward.queued() > 0 || !inward.counts()));
    }
    while !inward.next().is_empty() {
        cell.extend(inward.next());
        inward.gone(inward.next().len());
    }
    while !outward.next().is_empty() {
        client.extend(outward.next());
        outward.gone(outward.next().len());
    }
    // The cell gets the client's frames, in order; only pings may be missing, which were answered.
    let mut own = read(Sender::Client, [&*sent]).frames.into_iter();
    for got in whole(Sender::Client, &cell) {
        let next = own.find(|next| next.0 != Kind::Ping || *next == got);
        assert_eq!(next, Some(got), "lost or overtaken on the way in");
    }
    let mut left = own.filter(|left| left.0 != Kind::Ping);
    assert!(broken || inward.is_closed() || left.next().is_none(), "lost at the end");
    // The client gets the cell's, in order, and between them what Berth says: whole, and ticks between messages.
    let own = read(Sender::Cell, [&*said]).frames;
    let mut own = own.into_iter().peekable();
    let tick = methods::tick(NOW).into_bytes();
    for got in whole(Sender::Cell, &client) {
        if own.peek() == Some(&got) {
            own.next();
        } else if got.0 == Kind::Text {
            assert!(got.1 == tick && got.2 == Ends::Message, "neither the cell's nor a tick");
            ticks = ticks.checked_sub(1).expect("a tick that nobody said");
        } else {
            assert!(matches!(got.0, Kind::Pong | Kind::Close), "neither the cell's nor Berth's");
        }
    }
    assert_eq!(ticks, 0, "a tick that was not heard");
}

fn message(text: &[u8]) {
    let is_use = methods::message_is_use(text);
    // Whoever reads it takes the last of two equal keys, as the gateway does.
    let read = serde_json::from_slice::<Value>(text).ok();
    let word = |name: &str| read.as_ref().and_then(|read| read.get(name)).and_then(Value::as_str);
    let does_something = word("type") != Some("req") || word("method").is_none_or(methods::is_use);
    // Only what is nested too deeply for this reader may be understood there and not here.
    let too_deep = read.is_none() && text.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 100;
    assert!(is_use || !does_something || too_deep, "{}", String::from_utf8_lossy(text));
}

fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [9, 0, 200, 77];
    let mut frame = vec![opcode, 0x80 | u8::try_from(payload.len()).unwrap_or(125)];
    frame.extend(mask);
    frame.extend(payload.iter().take(125).zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let poll: &[u8] = br#"{"type":"req","id":"1","method":"cron.list"}"#;
    let send: &[u8] = br#"{"type":"req","id":"2","method":"chat.send","params":{"text":"x"}}"#;
    let from_client = [
        masked(0x81, poll),
        masked(0x01, send.get(..20).unwrap_or_default()),
        masked(0x89, b"ping"),
        masked(0x80, send.get(20..).unwrap_or_default()),
        masked(0x82, &[0; 60]),
        masked(0x8a, b""),
        masked(0x88, &[3, 232]),
    ]
    .concat();
    let mut half = server_frame(Kind::Text, b"half a ");
    half.iter_mut().take(1).for_each(|first| *first = 0x01);
    let mut rest = server_frame(Kind::Text, &[b'x'; 300]);
    rest.iter_mut().take(1).for_each(|first| *first = 0x80);
    let from_cell = [
        server_frame(Kind::Text, b"hello-ok"),
        half,
        server_frame(Kind::Ping, b"p"),
        rest,
        server_frame(Kind::Close, &1012_u16.to_be_bytes()),
    ]
    .concat();
    let steps = [
        (b'0', 80),
        (b'1', 32),
        (b'2', 32),
        (b'3', 48),
        (b'6', 0),
        (b'4', 0),
        (b'0', 255),
        (b'2', 255),
        (b'6', 0),
        (b'3', 96),
        (b'5', 0),
        (b'1', 255),
        (b'3', 255),
        (b'2', 255),
        (b'6', 0),
        (b'3', 255),
        (b'1', 255),
    ];
    let steps = steps.map(|(what, count)| [what, count]).concat();
    let socket = [
        &[u8::try_from(steps.len()).unwrap_or(0)][..],
        &steps,
        &u16::try_from(from_client.len()).unwrap_or(0).to_le_bytes(),
        &from_client,
        &from_cell,
    ]
    .concat();
    let mut seeds = vec![
        seed(0, [&[7][..], &from_client].concat()),
        seed(1, [&[3][..], &from_cell].concat()),
        seed(2, socket),
    ];
    let texts: [&[u8]; 5] = [
        poll,
        send,
        br#"{"method":"health","type":"req","method":"chat.send"}"#,
        br#"{"type":"re\u0071","method":"he\u0061lth","params":[{"method":"x"}]}"#,
        br#"{"type":"event","event":"tick"}"#,
    ];
    seeds.extend(texts.map(|text| seed(3, text)));
    seeds
}
