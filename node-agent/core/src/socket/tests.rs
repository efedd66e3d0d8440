use proptest::prelude::*;

use crate::frames::CONTROL_BYTES_MAX;
use crate::frames::tests::{cut, frame, stream};

use super::*;

const NOW: UnixMs = UnixMs(1_700_000_000_000);
const POLL: &[u8] = br#"{"type":"req","id":"1","method":"sessions.catalog.list","params":{}}"#;
const SEND: &[u8] = br#"{"type":"req","id":"2","method":"chat.send","params":{"text":"hello"}}"#;

fn sides() -> (Inward, Outward) {
    (Inward::of(Workload::Openclaw), Outward::of(Workload::Openclaw))
}

fn from_client(opcode: u8, last: bool, payload: &[u8]) -> Vec<u8> {
    frame(Sender::Client, opcode, last, payload)
}

fn from_cell(opcode: u8, last: bool, payload: &[u8]) -> Vec<u8> {
    frame(Sender::Cell, opcode, last, payload)
}

fn drain_inward(inward: &mut Inward) -> Vec<u8> {
    let mut all = Vec::new();
    while !inward.next().is_empty() {
        all.extend(inward.next());
        inward.gone(inward.next().len());
    }
    all
}

fn drain_outward(outward: &mut Outward) -> Vec<u8> {
    let mut all = Vec::new();
    while !outward.next().is_empty() {
        all.extend(outward.next());
        outward.gone(outward.next().len());
    }
    all
}

#[test]
fn a_poll_does_not_count_and_a_message_of_a_person_does() {
    let (mut inward, mut outward) = sides();
    for (opcode, payload, counts) in [
        (1, POLL, false),
        (1, SEND, true),
        (2, POLL, true),
        (9, b"", false),
        (10, b"", false),
        (1, b"no request", true),
    ] {
        let frame = from_client(opcode, true, payload);
        let taken = inward.take(&frame, false, &mut outward).unwrap();
        let expected = if counts { (1, 0) } else { (0, 1) };
        assert_eq!((taken.counted, taken.not_counted), expected);
        assert_eq!(inward.counts(), counts);
        assert_eq!(drain_inward(&mut inward), frame);
        assert!(!inward.counts(), "what has gone in is no longer waited for");
    }
}

#[test]
fn every_message_of_another_workload_counts_and_its_control_frames_do_not() {
    let (mut inward, mut outward) = (Inward::of(Workload::Http), Outward::of(Workload::Http));
    inward.take(&from_client(9, true, b""), false, &mut outward).unwrap();
    assert!(!inward.counts());
    inward.take(&from_client(1, true, POLL), false, &mut outward).unwrap();
    assert!(inward.counts());
    outward.take(&from_cell(1, true, b"x")).unwrap();
    drain_outward(&mut outward);
    assert!(!outward.tick(NOW), "nobody knows what such a client wants to hear");
}

#[test]
fn a_message_counts_when_it_is_long_and_at_its_end_at_the_latest() {
    let (mut inward, mut outward) = sides();
    let mut long = br#"{"type":"req","method":"health","params":""#.to_vec();
    long.resize(methods::LOOKED_AT_BYTES_MAX, b'x');
    inward.take(&from_client(1, false, &long), false, &mut outward).unwrap();
    assert!(!inward.counts());
    inward.take(&from_client(0, false, b"x"), false, &mut outward).unwrap();
    assert!(inward.counts(), "more than is looked at");
    drain_inward(&mut inward);
    inward.take(&from_client(0, true, b"\"}"), false, &mut outward).unwrap();
    assert!(inward.counts(), "so does the rest of it");
    drain_inward(&mut inward);
    inward.take(&from_client(1, true, POLL), false, &mut outward).unwrap();
    assert!(!inward.counts(), "the next one is judged anew");
    let (first, second) = SEND.split_at(20);
    inward.take(&from_client(1, false, first), false, &mut outward).unwrap();
    inward.take(&from_client(9, true, b"in between"), false, &mut outward).unwrap();
    assert!(!inward.counts());
    inward.take(&from_client(0, true, second), false, &mut outward).unwrap();
    assert!(inward.counts());
}

#[test]
fn a_resting_cells_pings_are_answered_and_everything_else_is_kept() {
    let (mut inward, mut outward) = sides();
    let (poll, pong, send) =
        (from_client(1, true, POLL), from_client(10, true, b"x"), from_client(1, true, SEND));
    for bytes in [&poll, &pong, &from_client(9, true, b"are you there"), &send] {
        inward.take(bytes, true, &mut outward).unwrap();
    }
    assert!(inward.counts());
    assert_eq!(drain_outward(&mut outward), from_cell(10, true, b"are you there"));
    assert_eq!(drain_inward(&mut inward), [poll, pong, send].concat());
}

#[test]
fn what_a_tab_asks_for_weeks_is_answered_and_what_its_person_types_then_goes_in_behind_what_was_kept() {
    let (mut inward, mut outward) = sides();
    outward.take(&from_cell(1, true, b"hello")).unwrap();
    drain_outward(&mut outward);
    let (poll, send) = (from_client(1, true, POLL), from_client(1, true, SEND));
    let mut answers = 0;
    for _ in 0..60_000 {
        inward.take(&poll, true, &mut outward).unwrap();
        let said = drain_outward(&mut outward);
        answers += usize::from(!said.is_empty());
        if answers == 1 && !said.is_empty() {
            let text: serde_json::Value = serde_json::from_slice(&said[4..]).unwrap();
            assert_eq!(
                (&text["type"], &text["id"], &text["ok"]),
                (&"res".into(), &"1".into(), &false.into())
            );
            assert_eq!(text["error"]["details"]["reason"], "gateway-suspending");
        }
    }
    let kept = POLLS_KEPT / poll.len();
    assert_eq!((inward.queued(), answers), (kept * poll.len(), 60_000 - kept));
    assert!(!inward.counts());
    inward.take(&send, true, &mut outward).unwrap();
    assert!(inward.counts());
    // In parts, with something of its own between them: such a one is kept.
    let (first, second) = POLL.split_at(20);
    let (first, second) = (from_client(1, false, first), from_client(0, true, second));
    inward.take(&[&first[..], &second].concat(), true, &mut outward).unwrap();
    let pong = from_client(10, true, b"");
    inward.take(&[&first[..], &pong, &second].concat(), true, &mut outward).unwrap();
    assert_eq!(drain_inward(&mut inward), [poll.repeat(kept), send, first, pong, second].concat());
}

#[test]
fn a_poll_of_which_a_part_has_gone_in_goes_in_whole() {
    let (mut inward, mut outward) = sides();
    let (first, second) = POLL.split_at(20);
    let (first, second) = (from_client(1, false, first), from_client(0, true, second));
    inward.take(&first, false, &mut outward).unwrap();
    let (gone, left) = first.split_at(9);
    inward.gone(gone.len());
    // Long enough to be over what is kept, short enough to be looked at whole.
    let filler = from_client(0, false, &[b' '; 100]).repeat(1 + POLLS_KEPT / 106);
    inward.take(&filler, true, &mut outward).unwrap();
    inward.take(&second, true, &mut outward).unwrap();
    assert_eq!(drain_inward(&mut inward), [left, &filler, &second].concat());
}

#[test]
fn a_ping_that_began_before_the_rest_goes_in_whole() {
    let (mut inward, mut outward) = sides();
    let ping = from_client(9, true, b"are you there");
    let (first, second) = ping.split_at(4);
    inward.take(first, false, &mut outward).unwrap();
    inward.take(second, true, &mut outward).unwrap();
    assert_eq!(drain_inward(&mut inward), ping);
    assert_eq!(drain_outward(&mut outward), b"");
    inward.take(first, true, &mut outward).unwrap();
    inward.take(second, false, &mut outward).unwrap();
    assert_eq!(drain_inward(&mut inward), b"");
    assert_eq!(drain_outward(&mut outward), from_cell(10, true, b"are you there"));
}

#[test]
fn a_close_while_the_cell_rests_is_acknowledged_and_goes_in_behind_what_was_sent() {
    let (mut inward, mut outward) = sides();
    let (send, close) = (from_client(1, true, SEND), from_client(8, true, &[3, 233, b'b']));
    inward.take(&[send.clone(), close.clone(), send.clone()].concat(), true, &mut outward).unwrap();
    assert!(inward.is_closed() && outward.is_ended());
    assert_eq!(drain_outward(&mut outward), from_cell(8, true, &[3, 233]));
    assert_eq!(drain_inward(&mut inward), [send, close].concat(), "nothing follows a close");
}

#[test]
fn a_tick_comes_between_two_messages_and_to_somebody_who_has_heard_all_before() {
    let (_, mut outward) = sides();
    assert!(!outward.tick(NOW), "nobody has been greeted");
    outward.take(&from_cell(1, false, b"half a ")).unwrap();
    drain_outward(&mut outward);
    assert!(!outward.tick(NOW), "in the middle of a message");
    let second = from_cell(0, true, b"message");
    outward.take(&second[..3]).unwrap();
    drain_outward(&mut outward);
    assert!(!outward.tick(NOW), "in the middle of a frame");
    outward.take(&second[3..]).unwrap();
    assert!(!outward.tick(NOW), "it has not been taken yet");
    drain_outward(&mut outward);
    assert!(outward.tick(NOW));
    assert!(!outward.tick(NOW), "one at a time");
    let tick = drain_outward(&mut outward);
    assert_eq!(
        tick,
        from_cell(1, true, br#"{"type":"event","event":"tick","payload":{"ts":1700000000000}}"#)
    );
    outward.take(&from_cell(8, true, &[3, 232])).unwrap();
    drain_outward(&mut outward);
    assert!(!outward.tick(NOW), "nothing follows a close");
}

#[test]
fn a_pong_waits_for_the_end_of_a_frame_and_only_the_newest_does() {
    let (mut inward, mut outward) = sides();
    let message = from_cell(1, false, b"half a message");
    outward.take(&message[..5]).unwrap();
    for payload in [b"1", b"2"] {
        inward.take(&from_client(9, true, payload), true, &mut outward).unwrap();
    }
    outward.take(&message[5..]).unwrap();
    let expected = [message, from_cell(10, true, b"2")].concat();
    assert_eq!(drain_outward(&mut outward), expected, "between the frames of a message is a good place");
}

#[test]
fn pings_of_a_client_that_reads_nothing_do_not_pile_up() {
    let (mut inward, mut outward) = sides();
    let ping = from_client(9, true, &[b'x'; CONTROL_BYTES_MAX]);
    for _ in 0..10_000 {
        inward.take(&ping, true, &mut outward).unwrap();
    }
    let said = drain_outward(&mut outward).len();
    assert!(said < 2 * ROOM_KEPT, "{said}");
    assert_eq!(inward.queued(), 0);
}

#[test]
fn berth_says_why_a_socket_ends_unless_the_cell_did() {
    let (_, mut outward) = sides();
    outward.close(Closing::Restart);
    outward.close(Closing::NotAllowed);
    outward.take(&from_cell(1, true, b"late")).unwrap();
    let mut expected = 1012_u16.to_be_bytes().to_vec();
    expected.extend(b"service restart");
    assert_eq!(drain_outward(&mut outward), from_cell(8, true, &expected), "and nothing follows");

    let (_, mut outward) = sides();
    let own = from_cell(8, true, &[3, 244]);
    outward.take(&own).unwrap();
    outward.close(Closing::Restart);
    assert_eq!(drain_outward(&mut outward), own);

    let (_, mut outward) = sides();
    let half = &from_cell(1, true, b"half")[..4];
    outward.take(half).unwrap();
    outward.close(Closing::Restart);
    assert_eq!(drain_outward(&mut outward), half, "in the middle of a frame nothing can be said");
}

/// What a client sends and when its cell rests.
#[derive(Debug, Clone)]
enum Step {
    Client(prop::sample::Index),
    Cell(prop::sample::Index),
    ToCell(prop::sample::Index),
    ToClient(prop::sample::Index),
    Rests,
    Wakes,
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    prop::collection::vec(
        prop_oneof![
            4 => index().prop_map(Step::Client),
            4 => index().prop_map(Step::Cell),
            3 => index().prop_map(Step::ToCell),
            3 => index().prop_map(Step::ToClient),
            1 => Just(Step::Rests),
            1 => Just(Step::Wakes),
            2 => Just(Step::Tick),
        ],
        0..120,
    )
}

/// The frames of a stream as a reader sees them, each with what it was.
fn split(sender: Sender, bytes: &[u8]) -> Vec<(Kind, Vec<u8>, Ends)> {
    let (mut frames, mut rest, mut read, mut one) = (Frames::of(sender), bytes, vec![], vec![]);
    while let Some(part) = frames.next(&mut rest).unwrap() {
        one.extend(part.bytes);
        if part.ends != Ends::Nothing {
            read.push((part.kind, std::mem::take(&mut one), part.ends));
        }
    }
    read
}

fn take<'a>(rest: &mut &'a [u8], index: &prop::sample::Index) -> &'a [u8] {
    let (taken, left) = rest.split_at(index.index(rest.len() + 1).min(5_000));
    *rest = left;
    taken
}

proptest! {
    /// However reading, writing, resting and ticks interleave: the cell gets what the client sent but for pings that
    /// were answered, in order and only while it is awake; the client gets what the cell sent, in order, with whole
    /// frames of Berth's between its frames, and ticks between its messages.
    #[test]
    fn any_interleaving_keeps_order_and_bytes(
        sent in stream(Sender::Client),
        said in stream(Sender::Cell),
        steps in steps(),
    ) {
        let (mut inward, mut outward) = sides();
        let (sent, said) = (sent.concat(), said.concat());
        let (mut to_take, mut to_say) = (&sent[..], &said[..]);
        let (mut cell, mut client, mut rests) = (Vec::new(), Vec::new(), false);
        let mut ticks = 0;
        for step in steps.into_iter().chain([Step::Wakes]) {
            match step {
                Step::Client(index) => {
                    inward.take(take(&mut to_take, &index), rests, &mut outward).unwrap();
                }
                Step::Cell(index) if !rests => outward.take(take(&mut to_say, &index)).unwrap(),
                Step::ToCell(index) if !rests => {
                    let count = index.index(inward.next().len() + 1);
                    cell.extend(&inward.next()[..count]);
                    inward.gone(count);
                }
                Step::ToClient(index) => {
                    let count = index.index(outward.next().len() + 1);
                    client.extend(&outward.next()[..count]);
                    outward.gone(count);
                }
                Step::Rests => rests = true,
                Step::Wakes => rests = false,
                Step::Tick => ticks += usize::from(outward.tick(NOW)),
                Step::Cell(_) | Step::ToCell(_) => {}
            }
        }
        inward.take(to_take, false, &mut outward).unwrap();
        outward.take(to_say).unwrap();
        cell.extend(drain_inward(&mut inward));
        client.extend(drain_outward(&mut outward));

        let mut own = split(Sender::Client, &sent).into_iter();
        for got in split(Sender::Client, &cell) {
            let next = own.by_ref().find(|next| next.0 != Kind::Ping || *next == got);
            prop_assert_eq!(next, Some(got));
        }
        prop_assert!(own.all(|left| left.0 == Kind::Ping));

        let tick = from_cell(1, true, methods::tick(NOW).as_bytes());
        let mut own = split(Sender::Cell, &said).into_iter().peekable();
        for got in split(Sender::Cell, &client) {
            if own.peek() == Some(&got) {
                own.next();
            } else if got.1 == tick {
                ticks -= 1;
            } else {
                prop_assert_eq!(got.0, Kind::Pong);
            }
        }
        prop_assert_eq!((own.next(), ticks), (None, 0));
    }

    #[test]
    fn any_split_of_what_a_client_sends_means_the_same(
        what in prop::collection::vec(0..5_u8, 0..10),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut sent = Vec::new();
        for what in what {
            sent.extend(match what {
                0 => from_client(1, true, POLL),
                1 => from_client(1, true, SEND),
                2 => from_client(9, true, b"ping"),
                3 => [from_client(1, false, &SEND[..9]), from_client(10, true, b""), from_client(0, true, &SEND[9..])].concat(),
                _ => from_client(2, true, &[0; 300]),
            });
        }
        let total = |pieces: &[&[u8]]| {
            let (mut inward, mut outward) = sides();
            let mut total = Taken::default();
            for piece in pieces {
                let taken = inward.take(piece, false, &mut outward).unwrap();
                total.counted += taken.counted;
                total.not_counted += taken.not_counted;
            }
            (total, inward.counts(), drain_inward(&mut inward))
        };
        prop_assert_eq!(total(&cut(&sent, &cuts)), total(&[&sent]));
    }
}
