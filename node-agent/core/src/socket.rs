//! Decides what becomes of a WebSocket's bytes between its client and its cell: what goes on, what is kept while the
//! cell rests, what is use of the cell, and what Berth says to the client itself.
//!
//! Owned by the ingress's tunnel, which reads, writes and knows the time. Each direction has a queue of bytes that are
//! to be written, in the order in which they came; nothing that was taken is lost or overtaken. While the cell rests
//! ([`Inward::take`] with `resting`), the client's bytes stay in the queue and Berth stands in for the cell: it
//! answers pings, acknowledges a close, and says something now and then so that a tab does not give up
//! (OPENCLAW_UI.md, section 6). Of what a tab asks by itself only so much is kept ([`POLLS_KEPT`]): the rest is answered
//! as a suspended gateway answers it, so that a tab which is left open for weeks neither fills the queue nor wakes anybody.
//! What Berth says stands between two frames, and what is a message of its own between two
//! messages.
//!
//! A message counts once that is known, which is at its last byte at the latest: until then its bytes go on uncounted,
//! and the workload cannot have begun anything because of them.

use std::collections::VecDeque;

use berth_shared::cell::Workload;
use berth_shared::time::UnixMs;

use crate::frames::{Broken, Ends, Frames, Kind, Part, Sender, server_frame};
use crate::workload::openclaw::methods;

/// Room of a queue that is kept when it is empty.
const ROOM_KEPT: usize = 16 * 1024;

/// Bytes of a client's messages that are kept while its cell rests before those of them that are no use of it are answered
/// instead. Far more than a tab asks at once when it comes back.
pub const POLLS_KEPT: usize = 16 * 1024;

/// Longest reason of a close that still fits into a control frame.
const REASON_BYTES_MAX: usize = 100;

/// Why Berth closes a socket (RFC 6455, section 7.4, and IANA's list).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Closing {
    /// The cell stops, is gone, or answers elsewhere.
    Restart,
    /// Its client may not be here any longer.
    NotAllowed,
    /// Its cell was to be woken and could not be.
    TryLater,
    /// Its client broke the protocol.
    ClientBroke,
    /// Its cell did.
    CellBroke,
}

impl Closing {
    /// Number and reason. The reason of a restart is upstream's own.
    pub const fn said(self) -> (u16, &'static str) {
        match self {
            Self::Restart => (1012, "service restart"),
            Self::NotAllowed => (1008, "no longer allowed"),
            Self::TryLater => (1013, "try again later"),
            Self::ClientBroke => (1002, "protocol error"),
            Self::CellBroke => (1011, "the cell broke the protocol"),
        }
    }
}

/// Messages and control frames of a client that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Those that are use of the cell.
    pub counted: u64,
    /// The others.
    pub not_counted: u64,
}

/// What is known of the message that is being taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    NotYet,
    Use,
}

/// From the client to the cell.
#[derive(Debug, Clone)]
pub struct Inward {
    workload: Workload,
    frames: Frames,
    queue: VecDeque<u8>,
    counts: bool,
    judged: Judged,
    /// The beginning of a text that is not judged yet.
    text: Vec<u8>,
    /// Has a message begun that has not ended?
    within: bool,
    /// Where in the queue it began, if it lies there whole and alone.
    began_at: Option<usize>,
    /// The payload of a ping or close that Berth answers: they are short.
    answered: Vec<u8>,
    answers: bool,
    closed: bool,
}

impl Inward {
    /// A socket that was just opened.
    pub const fn of(workload: Workload) -> Self {
        Self {
            workload,
            frames: Frames::of(Sender::Client),
            queue: VecDeque::new(),
            counts: false,
            judged: Judged::NotYet,
            text: Vec::new(),
            within: false,
            began_at: None,
            answered: Vec::new(),
            answers: false,
            closed: false,
        }
    }

    /// Takes what the client sent. While the cell is `resting`, what is to be answered is answered through `outward`.
    ///
    /// # Errors
    /// The client broke the protocol. What came before that is in the queue.
    pub fn take(&mut self, bytes: &[u8], resting: bool, outward: &mut Outward) -> Result<Taken, Broken> {
        let mut rest = bytes;
        let mut taken = Taken::default();
        while !self.closed
            && let Some(part) = self.frames.next(&mut rest)?
        {
            if part.kind.is_control() {
                self.control(&part, resting, outward, &mut taken);
            } else {
                if !std::mem::replace(&mut self.within, part.ends != Ends::Message) {
                    self.began_at = Some(self.queue.len());
                }
                self.queue.extend(part.bytes);
                self.data(&part, resting, outward, &mut taken);
            }
        }
        Ok(taken)
    }

    fn control(&mut self, part: &Part<'_>, resting: bool, outward: &mut Outward, taken: &mut Taken) {
        if part.begins {
            self.answered.clear();
            self.answers = resting && matches!(part.kind, Kind::Ping | Kind::Close);
        }
        // A close goes in as well, behind whatever is to be delivered still.
        if !self.answers || part.kind == Kind::Close {
            self.queue.extend(part.bytes);
            self.began_at = None;
        }
        if self.answers {
            self.answered.extend(part.payload());
        }
        if part.ends == Ends::Nothing {
            return;
        }
        taken.not_counted += 1;
        if self.answers && part.kind == Kind::Ping {
            outward.pong(&self.answered);
        } else if self.answers {
            self.closed = true;
            outward.acknowledge(&self.answered);
        }
    }

    fn data(&mut self, part: &Part<'_>, resting: bool, outward: &mut Outward, taken: &mut Taken) {
        if self.judged == Judged::NotYet && self.is_use(part) {
            self.judged = Judged::Use;
            self.text.clear();
        }
        if self.judged == Judged::Use {
            self.counts = true;
        }
        if part.ends == Ends::Message {
            match self.judged {
                Judged::Use => taken.counted += 1,
                Judged::NotYet => {
                    taken.not_counted += 1;
                    if resting && self.queue.len() > POLLS_KEPT {
                        self.answer_instead(outward);
                    }
                }
            }
            self.judged = Judged::NotYet;
            self.text.clear();
        }
    }

    /// The message that has just ended does not go in: its client is told so. Not one of which a part has gone in before.
    fn answer_instead(&mut self, outward: &mut Outward) {
        if let Some(began_at) = self.began_at.take() {
            self.queue.truncate(began_at);
            if let Some(answer) = methods::unavailable(&self.text) {
                outward.say(&answer);
            }
        }
    }

    /// Is the message of this part known to be use by now?
    fn is_use(&mut self, part: &Part<'_>) -> bool {
        match self.workload {
            Workload::Http => true,
            Workload::Openclaw => {
                let room = methods::LOOKED_AT_BYTES_MAX - self.text.len();
                let mut payload = part.payload();
                self.text.extend(payload.by_ref().take(room));
                part.kind != Kind::Text
                    || payload.next().is_some()
                    || (part.ends == Ends::Message && methods::message_is_use(&self.text))
            }
        }
    }

    /// The next bytes for the cell; empty when there are none.
    pub fn next(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// How many bytes wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// So many of [`Inward::next`] have gone to the cell.
    pub fn gone(&mut self, count: usize) {
        gone(&mut self.queue, count);
        self.began_at = self.began_at.and_then(|at| at.checked_sub(count));
        if self.queue.is_empty() {
            self.counts = false;
        }
    }

    /// Are there bytes in the queue that are use of the cell once they go in?
    pub const fn counts(&self) -> bool {
        self.counts
    }

    /// Did the client say that it leaves, and was that acknowledged here?
    pub const fn is_closed(&self) -> bool {
        self.closed
    }
}

/// From the cell to the client, and what Berth says.
#[derive(Debug, Clone)]
pub struct Outward {
    workload: Workload,
    frames: Frames,
    queue: VecDeque<u8>,
    /// A frame of Berth's that waits for the end of the cell's.
    owed: Option<Vec<u8>>,
    /// Has a message of the cell begun? Before that nobody expects one.
    greeted: bool,
    cell_closed: bool,
    ended: bool,
}

impl Outward {
    /// A socket that was just opened.
    pub const fn of(workload: Workload) -> Self {
        Self {
            workload,
            frames: Frames::of(Sender::Cell),
            queue: VecDeque::new(),
            owed: None,
            greeted: false,
            cell_closed: false,
            ended: false,
        }
    }

    /// Takes what the cell sent.
    ///
    /// # Errors
    /// The cell broke the protocol. What came before that is in the queue.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut rest = bytes;
        while !self.is_ended()
            && let Some(part) = self.frames.next(&mut rest)?
        {
            self.queue.extend(part.bytes);
            self.greeted |= !part.kind.is_control();
            if part.ends == Ends::Nothing {
                continue;
            }
            self.cell_closed = part.kind == Kind::Close;
            if let Some(owed) = self.owed.take_if(|_| !self.cell_closed) {
                self.queue.extend(owed);
            }
        }
        Ok(())
    }

    /// Lets the client hear from its cell, which rests. Not in the middle of a message, and not when the client has
    /// yet to take what was said before. `false`: nothing was said.
    pub fn tick(&mut self, now: UnixMs) -> bool {
        match self.workload {
            Workload::Openclaw if self.queue.is_empty() => self.say(&methods::tick(now)),
            Workload::Openclaw | Workload::Http => false,
        }
    }

    /// Says a message of Berth's own. Not in the middle of one of the cell's, and not when the client has much yet to take
    /// of what was said before. `false`: nothing was said.
    fn say(&mut self, text: &str) -> bool {
        let heard = self.queue.len() < ROOM_KEPT;
        let may = heard && !self.is_ended() && self.frames.is_between_messages() && self.greeted;
        if may {
            self.queue.extend(server_frame(Kind::Text, text.as_bytes()));
        }
        may
    }

    fn pong(&mut self, payload: &[u8]) {
        if self.is_ended() {
            return;
        }
        let frame = server_frame(Kind::Pong, payload);
        if self.frames.is_between_frames() && self.queue.len() < ROOM_KEPT {
            self.queue.extend(frame);
        } else {
            // Only the newest has to be answered (RFC 6455, section 5.5.3).
            self.owed = Some(frame);
        }
    }

    /// Answers a close with its own number. In the middle of a frame of the cell nothing can be said any more.
    fn acknowledge(&mut self, payload: &[u8]) {
        let number = payload.first_chunk::<2>().map_or(&[][..], |number| &number[..]);
        self.end(number);
    }

    /// Says why the socket ends, if its cell has not said so and something can be said. Nothing follows.
    pub fn close(&mut self, closing: Closing) {
        let (number, reason) = closing.said();
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend(reason.bytes().take(REASON_BYTES_MAX));
        self.end(&payload);
    }

    fn end(&mut self, payload: &[u8]) {
        if !self.is_ended() && self.frames.is_between_frames() {
            self.queue.extend(server_frame(Kind::Close, payload));
        }
        self.ended = true;
    }

    /// Has the last frame to the client been taken or said?
    pub const fn is_ended(&self) -> bool {
        self.ended || self.cell_closed
    }

    /// The next bytes for the client; empty when there are none.
    pub fn next(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// So many of [`Outward::next`] have gone to the client.
    pub fn gone(&mut self, count: usize) {
        gone(&mut self.queue, count);
        let may = self.queue.is_empty() && self.frames.is_between_frames() && !self.is_ended();
        if let Some(owed) = self.owed.take_if(|_| may) {
            self.queue.extend(owed);
        }
    }
}

fn gone(queue: &mut VecDeque<u8>, count: usize) {
    queue.drain(..count.min(queue.len()));
    if queue.is_empty() && queue.capacity() > ROOM_KEPT {
        queue.shrink_to(ROOM_KEPT);
    }
}

#[cfg(test)]
mod tests;
