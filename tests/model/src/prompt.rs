//! What a chat request says: the part of OpenAI's request that is read here, and what the user said in it.
//!
//! Callers add much of their own (tools, sampling, metadata): everything unknown is accepted and left alone. OpenClaw
//! also adds to what the user said. Seen in the requests of 2026.9.6: a time in brackets before each message, which
//! stays; after the first message of a session a line `Runtime: agent=…`; and after the newest one a user message of
//! its own between two marks. The last two are taken away: the user did not say them.

use serde::Deserialize;

/// Begins what OpenClaw adds in the user's name.
const INTERNAL_BEGIN: &str = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>";
/// Ends it.
const INTERNAL_END: &str = "<<<END_OPENCLAW_INTERNAL_CONTEXT>>>";
/// Begins the line that OpenClaw puts after the first message of a session.
const RUNTIME_LINE: &str = "Runtime: agent=";

/// A `POST /v1/chat/completions` body.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    pub(crate) model: String,
    messages: Vec<Message>,
    /// Server-sent events instead of one JSON object.
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    /// Absent or null in an assistant's message that only calls tools.
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message. Pictures and sounds have no text, and there is nothing to say back of them.
#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

impl Content {
    fn text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => {
                parts.iter().filter_map(|part| part.text.as_deref()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

impl Request {
    /// What the user said, newest last; without what OpenClaw added, and without messages that were only that.
    pub(crate) fn user_texts(&self) -> Vec<String> {
        let users = self.messages.iter().filter(|message| message.role == "user");
        let contents = users.filter_map(|message| message.content.as_ref());
        contents.map(|content| said(&content.text())).filter(|text| !text.is_empty()).collect()
    }

    /// Characters in all messages, whoever said them.
    pub(crate) fn chars(&self) -> usize {
        let contents = self.messages.iter().filter_map(|message| message.content.as_ref());
        contents.map(|content| content.text().chars().count()).sum()
    }

    /// Does the caller want a last chunk with the usage?
    pub(crate) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }
}

/// A user message without OpenClaw's additions.
fn said(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once(INTERNAL_BEGIN) {
        kept.push_str(before);
        // Without an end mark the rest of the message is the addition.
        rest = inside.split_once(INTERNAL_END).map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    let lines = kept.lines().filter(|line| !line.starts_with(RUNTIME_LINE));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_user_is_heard_in_strings_and_in_parts() {
        let request: Request = serde_json::from_value(json!({
            "model": "m", "temperature": 1, "tools": [{}],
            "messages": [
                { "role": "system", "content": "be kind" },
                { "role": "user", "content": "one" },
                { "role": "assistant", "content": null, "tool_calls": [] },
                { "role": "tool", "tool_call_id": "t", "content": "result" },
                { "role": "user", "content": [
                    { "type": "text", "text": "two" },
                    { "type": "image_url", "image_url": { "url": "data:" } },
                    { "type": "text", "text": "three" },
                ] },
                { "role": "user" },
            ],
        }))
        .unwrap();
        assert_eq!(request.user_texts(), ["one", "two\nthree"]);
        assert_eq!(request.chars(), "be kindoneresulttwo\nthree".len());
        assert!(!request.wants_usage());
        assert_eq!(request.stream, None);
    }

    #[test]
    fn what_openclaw_adds_in_the_name_of_the_user_is_not_said_back() {
        let request: Request = serde_json::from_value(json!({
            "model": "m",
            "messages": [
                { "role": "user", "content": "[Sat 01:18 UTC] the word\nis heliotrope\n\nRuntime: agent=main | host=h" },
                { "role": "user", "content": [{
                    "type": "text",
                    "text": format!("{INTERNAL_BEGIN}\n\"Active exec sessions:\\nnone\"\n{INTERNAL_END}"),
                }] },
                { "role": "user", "content": format!("a {INTERNAL_BEGIN}x{INTERNAL_END}b{INTERNAL_BEGIN}never ended") },
            ],
        }))
        .unwrap();
        assert_eq!(request.user_texts(), ["[Sat 01:18 UTC] the word\nis heliotrope", "a b"]);
    }
}
