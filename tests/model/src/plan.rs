//! What is answered, in which pieces, and how long each piece takes. Decided here without a clock; `router` waits.

use std::time::Duration;

/// User messages that are said back; older ones are left out.
const MESSAGES_MAX: usize = 20;
/// Characters of each message that are said back. Of a longer one the middle is left out: callers put words of their own
/// before or after what was typed.
const MESSAGE_CHARS_MAX: usize = 200;
/// Characters of an answer's piece.
const PIECE_CHARS: usize = 32;
/// Longest time that a user message can ask for.
const SLOW_MS_MAX: u64 = 600_000;
/// How often a slow completion says something.
const SLOW_STEP: Duration = Duration::from_secs(1);
/// In the newest user message, followed by milliseconds: that completion takes so long.
const SLOW_WORD: &str = "slow:";
/// Largest `--delay-ms`.
pub(crate) const DELAY_MS_MAX: u64 = 600_000;
/// Largest `--chunk-ms`.
pub(crate) const CHUNK_MS_MAX: u64 = 60_000;

/// How fast answers are given when the user asks for nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Before the first piece.
    pub(crate) delay: Duration,
    /// Before each other piece.
    pub(crate) chunk_pause: Duration,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How long after the piece before it (the first: after the request) it is said.
    pub(crate) after: Duration,
    /// Its text. All texts in a row are the answer.
    pub(crate) text: String,
}

/// The answer to a conversation of which the user said `texts`, newest last.
pub(crate) fn answer(texts: &[String], pace: Pace) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut after = pace.delay;
    if let Some(total) = texts.last().and_then(|newest| slow(newest)) {
        // A sign of life per second, and the answer with the end of the time that was asked for.
        let mut left = total;
        while left > SLOW_STEP {
            pieces.push(Piece { after: after + SLOW_STEP, text: ". ".to_owned() });
            after = Duration::ZERO;
            left -= SLOW_STEP;
        }
        after += left;
    }
    let chars: Vec<char> = say_back(texts).chars().collect();
    for piece in chars.chunks(PIECE_CHARS) {
        pieces.push(Piece { after, text: piece.iter().collect() });
        after = pace.chunk_pause;
    }
    pieces
}

fn say_back(texts: &[String]) -> String {
    if texts.is_empty() {
        return "You said nothing so far.".to_owned();
    }
    let newest = texts.iter().skip(texts.len().saturating_sub(MESSAGES_MAX));
    let quoted: Vec<String> = newest.map(|text| format!("\"{}\"", shortened(text))).collect();
    format!("You said: {}", quoted.join(" / "))
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    let count = text.chars().count();
    if count <= MESSAGE_CHARS_MAX {
        return text.to_owned();
    }
    let half = MESSAGE_CHARS_MAX / 2;
    let (head, tail): (String, String) =
        (text.chars().take(half).collect(), text.chars().skip(count - half).collect());
    format!("{head}…{tail}")
}

fn slow(text: &str) -> Option<Duration> {
    let (_, rest) = text.rsplit_once(SLOW_WORD)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let ms: u64 = digits.parse().ok()?;
    Some(Duration::from_millis(ms.min(SLOW_MS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str]) -> Vec<Piece> {
        answer(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), Pace::default())
    }

    fn text(pieces: &[Piece]) -> String {
        pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    fn total(pieces: &[Piece]) -> Duration {
        pieces.iter().map(|piece| piece.after).sum()
    }

    #[test]
    fn the_user_hears_their_own_words_newest_last() {
        assert_eq!(
            text(&said(&["the word is heliotrope", "and what was it"])),
            "You said: \"the word is heliotrope\" / \"and what was it\""
        );
        assert_eq!(text(&said(&[])), "You said nothing so far.");
    }

    #[test]
    fn old_messages_and_the_middle_of_long_ones_are_left_out() {
        let many: Vec<String> = (0..=MESSAGES_MAX).map(|number| format!("<{number}>")).collect();
        let answer = text(&answer(&many, Pace::default()));
        assert!(!answer.contains("<0>") && answer.contains("<1>") && answer.contains("<20>"), "{answer}");
        let half = MESSAGE_CHARS_MAX / 2;
        let (head, tail) = ("é".repeat(half), "ü".repeat(half));
        assert_eq!(text(&said(&[&format!("{head}{tail}")])), format!("You said: \"{head}{tail}\""));
        assert_eq!(text(&said(&[&format!("{head}x{tail}")])), format!("You said: \"{head}…{tail}\""));
    }

    #[test]
    fn the_newest_message_can_ask_for_time_and_gets_a_sign_of_life_each_second() {
        let pieces = said(&["[Tue 10:00] please slow:2500 now"]);
        assert_eq!(total(&pieces), Duration::from_millis(2500));
        let waits: Vec<u128> = pieces.iter().take(3).map(|piece| piece.after.as_millis()).collect();
        assert_eq!(waits, [1000, 1000, 500]);
        assert!(text(&pieces).starts_with(". . You said: "), "{}", text(&pieces));
        assert_eq!(total(&said(&["slow:2500", "thanks"])), Duration::ZERO);
        assert_eq!(total(&said(&["slow:soon"])), Duration::ZERO);
        assert_eq!(total(&said(&["slow:99999999"])), Duration::from_millis(SLOW_MS_MAX));
    }

    #[test]
    fn the_pace_is_one_delay_and_a_pause_between_pieces() {
        let pace = Pace { delay: Duration::from_millis(70), chunk_pause: Duration::from_millis(5) };
        let pieces = answer(&["x".repeat(3 * PIECE_CHARS)], pace);
        let waits: Vec<u128> = pieces.iter().map(|piece| piece.after.as_millis()).collect();
        assert_eq!(waits, [70, 5, 5, 5]);
    }
}
