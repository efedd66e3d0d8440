//! Reads WebSocket frames (RFC 6455, section 5.2) from one direction of a connection, in whatever pieces its bytes
//! come: where a frame and a message end, what kind they are, what is in them. Nothing is kept but a frame's head.
//!
//! Owned by [`crate::socket`]. No extension is ever agreed on (`front::drops_request_header`), so a payload is what it
//! looks like. A stream that breaks the rules is given up: where it goes on cannot be known.

/// Longest payload of a control frame (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Two bytes, eight of a length, four of a mask.
const HEAD_BYTES_MAX: usize = 14;

/// Whose frames are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client masks each of them.
    Client,
    /// A cell masks none.
    Cell,
}

/// What a frame is. The later frames of a message are of the first one's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
    /// To be answered with a pong.
    Ping,
    /// The answer to a ping, or said unasked.
    Pong,
    /// The last frame of its sender.
    Close,
}

impl Kind {
    /// May it stand between the frames of a message?
    pub const fn is_control(self) -> bool {
        match self {
            Self::Ping | Self::Pong | Self::Close => true,
            Self::Text | Self::Binary => false,
        }
    }
}

/// What ends with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Nothing: more of the frame follows.
    Nothing,
    /// A frame, and its message goes on; or a control frame.
    Frame,
    /// A frame and its message.
    Message,
}

/// Bytes of one frame that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// What the frame is.
    pub kind: Kind,
    /// Is this the frame's first byte?
    pub begins: bool,
    /// What ends here.
    pub ends: Ends,
    /// All bytes, as they came.
    pub bytes: &'a [u8],
    /// How many of them are of the frame's head.
    head: usize,
    mask: [u8; 4],
    /// Which byte of the mask is the first payload byte's.
    phase: usize,
}

impl<'a> Part<'a> {
    /// What of the payload is in it, unmasked.
    pub fn payload(&self) -> impl Iterator<Item = u8> + use<'a> {
        let mask = self.mask.into_iter().cycle().skip(self.phase);
        self.bytes.get(self.head..).unwrap_or_default().iter().zip(mask).map(|(byte, mask)| byte ^ mask)
    }
}

/// Why a stream is not one of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A bit of an extension that was not agreed on.
    #[error("a reserved bit is set")]
    Reserved,
    /// A kind that does not exist.
    #[error("an unknown opcode")]
    Opcode,
    /// A client's frame is masked and a cell's is not.
    #[error("a mask where none may be, or none where one has to be")]
    Mask,
    /// A control frame in pieces, or one that is too long.
    #[error("a control frame that is none")]
    Control,
    /// The second frame of a message that never began, or the first one inside of another.
    #[error("a frame out of order")]
    Order,
    /// No stream is so long.
    #[error("a length of 2^63 or more")]
    Length,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: Kind,
    last: bool,
    left: u64,
    mask: [u8; 4],
    phase: usize,
}

/// One direction. Give it bytes until it has taken them all.
#[derive(Debug, Clone)]
pub struct Frames {
    sender: Sender,
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    /// The frame whose payload comes.
    frame: Option<Frame>,
    /// The message whose next frame is awaited.
    message: Option<Kind>,
}

impl Frames {
    /// At the beginning of a stream.
    pub const fn of(sender: Sender) -> Self {
        Self { sender, head: [0; HEAD_BYTES_MAX], head_bytes: 0, frame: None, message: None }
    }

    /// Is nothing begun that is not ended, but perhaps a message?
    pub const fn is_between_frames(&self) -> bool {
        self.head_bytes == 0 && self.frame.is_none()
    }

    /// Is nothing begun that is not ended?
    pub const fn is_between_messages(&self) -> bool {
        self.is_between_frames() && self.message.is_none()
    }

    /// Takes as many bytes as are of one frame; `None` when there are none left.
    ///
    /// # Errors
    /// The stream is not one of frames; nothing more can be read from it.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Part<'a>>, Broken> {
        let all: &'a [u8] = bytes;
        if all.is_empty() {
            return Ok(None);
        }
        let begins = self.is_between_frames();
        let (mut frame, head) = match self.frame.take() {
            Some(frame) => (frame, 0),
            None => {
                let (read, head) = self.read_head(all)?;
                match read {
                    Some(frame) => (frame, head),
                    None => {
                        *bytes = all.get(head..).unwrap_or_default();
                        let [first, ..] = self.head;
                        let kind = self.kind_of(first)?;
                        let bytes = all.get(..head).unwrap_or_default();
                        let (ends, mask) = (Ends::Nothing, [0; 4]);
                        return Ok(Some(Part { kind, begins, ends, bytes, head, mask, phase: 0 }));
                    }
                }
            }
        };
        let room = all.len() - head;
        let taken = usize::try_from(frame.left).unwrap_or(usize::MAX).min(room);
        let (part, rest) = all.split_at_checked(head + taken).unwrap_or((all, &[]));
        *bytes = rest;
        let (kind, mask, phase) = (frame.kind, frame.mask, frame.phase);
        frame.left -= taken as u64;
        frame.phase = (phase + taken) % mask.len();
        let ends = if frame.left > 0 {
            self.frame = Some(frame);
            Ends::Nothing
        } else if kind.is_control() {
            Ends::Frame
        } else if frame.last {
            self.message = None;
            Ends::Message
        } else {
            self.message = Some(kind);
            Ends::Frame
        };
        Ok(Some(Part { kind, begins, ends, bytes: part, head, mask, phase }))
    }

    fn kind_of(&self, first: u8) -> Result<Kind, Broken> {
        if first & 0x70 != 0 {
            return Err(Broken::Reserved);
        }
        let last = first & 0x80 != 0;
        match (first & 0x0f, self.message) {
            (0, Some(kind)) => Ok(kind),
            (1, None) => Ok(Kind::Text),
            (2, None) => Ok(Kind::Binary),
            (0, None) | (1 | 2, Some(_)) => Err(Broken::Order),
            (8..=10, _) if !last => Err(Broken::Control),
            (8, _) => Ok(Kind::Close),
            (9, _) => Ok(Kind::Ping),
            (10, _) => Ok(Kind::Pong),
            _ => Err(Broken::Opcode),
        }
    }

    /// Reads on in a head; gives the frame once the head is whole, and how many bytes were read.
    fn read_head(&mut self, bytes: &[u8]) -> Result<(Option<Frame>, usize), Broken> {
        for (at, byte) in bytes.iter().enumerate() {
            if let Some(slot) = self.head.get_mut(self.head_bytes) {
                *slot = *byte;
            }
            self.head_bytes += 1;
            if self.head_bytes == 1 {
                self.kind_of(*byte)?;
            }
            if let Some(frame) = self.frame_of_head()? {
                self.head_bytes = 0;
                return Ok((Some(frame), at + 1));
            }
        }
        Ok((None, bytes.len()))
    }

    fn frame_of_head(&self) -> Result<Option<Frame>, Broken> {
        let [first, second, rest @ ..] = self.head;
        if self.head_bytes < 2 {
            return Ok(None);
        }
        let kind = self.kind_of(first)?;
        let masked = second & 0x80 != 0;
        if masked != matches!(self.sender, Sender::Client) {
            return Err(Broken::Mask);
        }
        let short = second & 0x7f;
        if kind.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(Broken::Control);
        }
        let [a, b, c, d, e, f, g, h, ..] = rest;
        let (length, length_bytes) = match short {
            126 => (u64::from(u16::from_be_bytes([a, b])), 2),
            127 => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 8),
            short => (u64::from(short), 0),
        };
        if self.head_bytes < 2 + length_bytes + if masked { 4 } else { 0 } {
            return Ok(None);
        }
        if length >> 63 != 0 {
            return Err(Broken::Length);
        }
        let mask = rest.get(length_bytes..).and_then(|rest| rest.first_chunk::<4>());
        let mask = mask.filter(|_| masked).copied().unwrap_or([0; 4]);
        Ok(Some(Frame { kind, last: first & 0x80 != 0, left: length, mask, phase: 0 }))
    }
}

/// A whole frame as a server sends it, unmasked.
pub fn server_frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let opcode = match kind {
        Kind::Text => 1,
        Kind::Binary => 2,
        Kind::Close => 8,
        Kind::Ping => 9,
        Kind::Pong => 10,
    };
    let mut frame = Vec::with_capacity(4 + payload.len());
    frame.push(0x80 | opcode);
    // Berth itself says nothing longer than 64 KiB.
    let payload = payload.get(..usize::from(u16::MAX)).unwrap_or(payload);
    match u8::try_from(payload.len()) {
        Ok(short @ ..126) => frame.push(short),
        Ok(_) | Err(_) => {
            frame.push(126);
            frame.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
pub(crate) mod tests;
