//! What a chat request says: the part of OpenAI's request that is read here, and what the user said in it.
//!
//! Callers add much of their own (tools, sampling, metadata): everything unknown is accepted and left alone.

use serde::Deserialize;

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
    /// The texts of the user's messages, newest last, as they came: also with what the caller wrapped around them.
    pub(crate) fn user_texts(&self) -> Vec<String> {
        let users = self.messages.iter().filter(|message| message.role == "user");
        users.filter_map(|message| message.content.as_ref().map(Content::text)).collect()
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
}
