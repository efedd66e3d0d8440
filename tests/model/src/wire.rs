//! The shapes of OpenAI's chat API: one JSON object, or chunks as server-sent events.

use bytes::Bytes;
use serde_json::{Value, json};

/// Characters per token, roughly, for English. Usage is only an estimate here: there is no tokenizer to ask.
const CHARS_PER_TOKEN: usize = 4;
/// Ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What all parts of one completion have in common.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    /// `chatcmpl-…`.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created_s: u64,
    /// The model that was asked for.
    pub(crate) model: String,
    /// Characters that were read.
    pub(crate) prompt_chars: usize,
}

impl Completion {
    /// The whole answer at once.
    pub(crate) fn whole(&self, answer: &str) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created_s, "model": self.model,
            "choices": [{
                "index": 0, "message": { "role": "assistant", "content": answer }, "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": self.usage(answer.chars().count()),
        })
    }

    /// The first chunk: who speaks.
    pub(crate) fn role_event(&self, with_usage: bool) -> Bytes {
        self.event(json!({ "role": "assistant", "content": "" }), Value::Null, with_usage)
    }

    /// A chunk with a piece of the answer.
    pub(crate) fn piece_event(&self, piece: &str, with_usage: bool) -> Bytes {
        self.event(json!({ "content": piece }), Value::Null, with_usage)
    }

    /// All that comes after the last piece: the reason of the end, the usage if it was asked for, and the end mark.
    pub(crate) fn end_events(&self, answer_chars: usize, with_usage: bool) -> Bytes {
        let mut events = self.event(json!({}), json!("stop"), with_usage).to_vec();
        if with_usage {
            let mut chunk = self.chunk(json!([]));
            if let Some(fields) = chunk.as_object_mut() {
                fields.insert("usage".to_owned(), self.usage(answer_chars));
            }
            events.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
        }
        events.extend_from_slice(DONE);
        events.into()
    }

    fn event(&self, delta: Value, finish_reason: Value, with_usage: bool) -> Bytes {
        let choice =
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason }]);
        let mut chunk = self.chunk(choice);
        if let (true, Some(fields)) = (with_usage, chunk.as_object_mut()) {
            fields.insert("usage".to_owned(), Value::Null);
        }
        format!("data: {chunk}\n\n").into()
    }

    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created_s, "model": self.model,
            "choices": choices,
        })
    }

    fn usage(&self, answer_chars: usize) -> Value {
        let (prompt, answer) =
            (self.prompt_chars.div_ceil(CHARS_PER_TOKEN), answer_chars.div_ceil(CHARS_PER_TOKEN));
        json!({ "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer })
    }
}

/// The list of models. Any other name is answered too.
pub(crate) fn models() -> Value {
    json!({
        "object": "list",
        "data": [{ "id": "demo", "object": "model", "created": 0, "owned_by": "berth" }],
    })
}

/// An error as the API says it.
pub(crate) fn error(message: &str, kind: &str) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
}
