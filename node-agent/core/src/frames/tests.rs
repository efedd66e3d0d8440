use proptest::prelude::*;

use super::*;

/// A frame as its sender makes it, for tests.
pub(crate) fn frame(sender: Sender, opcode: u8, last: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode | if last { 0x80 } else { 0 }];
    let bit = if sender == Sender::Client { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..126 => frame.push(bit | u8::try_from(short).unwrap()),
        middle @ 126..0x1_0000 => {
            frame.push(bit | 126);
            frame.extend(u16::try_from(middle).unwrap().to_be_bytes());
        }
        long => {
            frame.push(bit | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    match sender {
        Sender::Client => {
            let mask = [0x12, 0x00, 0xfe, u8::try_from(payload.len() % 251).unwrap()];
            frame.extend(mask);
            frame.extend(payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
        Sender::Cell => frame.extend(payload),
    }
    frame
}

/// What was read: kind, payload and end of each frame, and where frames and messages ended in the stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    frames: Vec<(Kind, Vec<u8>, Ends)>,
    between_frames: Vec<usize>,
    between_messages: Vec<usize>,
}

fn read(frames: &mut Frames, pieces: &[&[u8]]) -> Result<Read, Broken> {
    let (mut read, mut at, mut payload) = (Read::default(), 0, Vec::new());
    for piece in pieces {
        let mut rest = *piece;
        while let Some(part) = frames.next(&mut rest)? {
            assert_eq!(part.begins, at == read.between_frames.last().copied().unwrap_or(0));
            at += part.bytes.len();
            payload.extend(part.payload());
            if part.ends != Ends::Nothing {
                read.frames.push((part.kind, std::mem::take(&mut payload), part.ends));
            }
            assert_eq!(frames.is_between_frames(), part.ends != Ends::Nothing);
            if frames.is_between_frames() {
                read.between_frames.push(at);
            }
            if frames.is_between_messages() {
                read.between_messages.push(at);
            }
        }
        assert!(rest.is_empty());
    }
    Ok(read)
}

fn one(sender: Sender, bytes: &[u8]) -> Result<Read, Broken> {
    read(&mut Frames::of(sender), &[bytes])
}

#[test]
fn messages_in_fragments_with_pings_in_between_are_told_apart() {
    let of = |opcode, last, payload: &[u8]| frame(Sender::Client, opcode, last, payload);
    let stream = [
        of(1, true, b"whole"),
        of(1, false, b"one "),
        of(9, true, b"ping"),
        of(0, false, b"message "),
        of(10, true, b""),
        of(0, true, b""),
        of(2, true, &[7; 70_000]),
        of(8, true, &[3, 232]),
    ];
    let read = one(Sender::Client, &stream.concat()).unwrap();
    let told: Vec<(Kind, usize, Ends)> =
        read.frames.iter().map(|(kind, payload, ends)| (*kind, payload.len(), *ends)).collect();
    assert_eq!(
        told,
        [
            (Kind::Text, 5, Ends::Message),
            (Kind::Text, 4, Ends::Frame),
            (Kind::Ping, 4, Ends::Frame),
            (Kind::Text, 8, Ends::Frame),
            (Kind::Pong, 0, Ends::Frame),
            (Kind::Text, 0, Ends::Message),
            (Kind::Binary, 70_000, Ends::Message),
            (Kind::Close, 2, Ends::Frame),
        ]
    );
    assert_eq!(read.frames[0].1, b"whole");
    assert_eq!(read.between_messages.len(), 4, "not between the fragments");
}

#[test]
fn what_breaks_the_rules_is_told_at_its_first_byte_that_does() {
    for (sender, bytes, broken) in [
        (Sender::Client, &[0xc1][..], Broken::Reserved),
        (Sender::Client, &[0x91], Broken::Reserved),
        (Sender::Client, &[0x83], Broken::Opcode),
        (Sender::Client, &[0x8b], Broken::Opcode),
        (Sender::Client, &[0x80], Broken::Order),
        (Sender::Client, &[0x01, 0x80, 0, 0, 0, 0, 0x81], Broken::Order),
        (Sender::Client, &[0x09], Broken::Control),
        (Sender::Client, &[0x89, 0xfe], Broken::Control),
        (Sender::Client, &[0x81, 0x05], Broken::Mask),
        (Sender::Cell, &[0x81, 0x85], Broken::Mask),
        (Sender::Cell, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], Broken::Length),
    ] {
        assert_eq!(one(sender, bytes), Err(broken), "{bytes:x?}");
        let (last, before) = bytes.split_last().unwrap();
        let mut frames = Frames::of(sender);
        assert!(read(&mut frames, &[before]).is_ok(), "{bytes:x?}");
        assert_eq!(read(&mut frames, &[&[*last]]), Err(broken), "{bytes:x?}");
    }
}

#[test]
fn a_frame_of_berths_own_is_a_servers() {
    for length in [0, 1, 125, 126, 300] {
        let payload = vec![b'x'; length];
        let made = server_frame(Kind::Text, &payload);
        assert_eq!(made, frame(Sender::Cell, 1, true, &payload));
    }
}

/// Frames in a legal order.
pub(crate) fn stream(sender: Sender) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 120..300),
        1 => Just(vec![9; 66_000]),
    ];
    prop::collection::vec((0..8_u8, any::<bool>(), payload), 0..12).prop_map(move |wishes| {
        let mut open = false;
        wishes
            .into_iter()
            .map(|(what, last, payload)| match what {
                0 | 1 => frame(sender, 8 + what + 1, true, &payload[..payload.len().min(125)]),
                _ => {
                    let opcode = if open { 0 } else { 1 + what % 2 };
                    open = !last;
                    frame(sender, opcode, last, &payload)
                }
            })
            .collect()
    })
}

/// The pieces of a stream that is cut at these places.
pub(crate) fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(
        (sender, frames) in prop_oneof![Just(Sender::Client), Just(Sender::Cell)]
            .prop_flat_map(|sender| (Just(sender), stream(sender))),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let bytes = frames.concat();
        let whole = one(sender, &bytes).unwrap();
        prop_assert_eq!(whole.frames.len(), frames.len());
        let ends: Vec<usize> = frames.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }).collect();
        prop_assert_eq!(&whole.between_frames, &ends);
        prop_assert_eq!(read(&mut Frames::of(sender), &cut(&bytes, &cuts)).unwrap(), whole);
    }

    #[test]
    fn any_bytes_are_read_or_refused_in_the_same_way_however_they_are_split(
        client in any::<bool>(),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x81_u8), Just(0x80_u8), Just(0x02_u8)], 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let sender = if client { Sender::Client } else { Sender::Cell };
        let whole = one(sender, &bytes);
        prop_assert_eq!(read(&mut Frames::of(sender), &cut(&bytes, &cuts)), whole);
    }
}
