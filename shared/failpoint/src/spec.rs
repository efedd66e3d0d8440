//! What is armed, as text: `name[=action][@n]`, separated by commas or on lines of their own.

use std::time::Duration;

use crate::{Due, Kind};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Kill,
    Do(Due),
}

/// One armed point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Armed {
    pub(crate) name: String,
    pub(crate) action: Action,
    /// At which pass, from 1.
    pub(crate) at: u64,
    /// Passes so far.
    pub(crate) passed: u64,
}

/// Reads a list; the error says what is wrong with which part.
pub(crate) fn parse(text: &str) -> Result<Vec<Armed>, String> {
    text.split([',', '\n'])
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.starts_with('#'))
        .map(parse_one)
        .collect()
}

fn parse_one(part: &str) -> Result<Armed, String> {
    let (rest, at) = match part.rsplit_once('@') {
        Some((rest, at)) => {
            (rest, at.parse().ok().filter(|at| *at > 0).ok_or(format!("`{part}`: @n counts from 1"))?)
        }
        None => (part, 1),
    };
    let (name, action) = rest.split_once('=').unwrap_or((rest, "kill"));
    let action = match action.split_once(':').unwrap_or((action, "")) {
        ("kill", "") => Action::Kill,
        ("error", "") => Action::Do(Due::Error),
        ("force", "") => Action::Do(Due::Force),
        ("delay", ms) => {
            let ms = ms.parse().map_err(|_| format!("`{part}`: delay:MS takes milliseconds"))?;
            Action::Do(Due::Delay(Duration::from_millis(ms)))
        }
        _ => return Err(format!("`{part}`: the action is none of kill, error, delay:MS, force")),
    };
    Ok(Armed { name: name.to_owned(), action, at, passed: 0 })
}

/// May this be armed at a point of this kind?
pub(crate) fn fits(action: Action, kind: Kind) -> bool {
    match action {
        Action::Do(Due::Error) => kind == Kind::Fallible,
        Action::Do(Due::Force) => kind == Kind::Condition,
        Action::Kill | Action::Do(Due::Delay(_) | Due::Nothing) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Armed {
        parse(text).unwrap().remove(0)
    }

    #[test]
    fn a_bare_name_is_a_kill_at_the_first_pass() {
        let armed = Armed { name: "done:pause".to_owned(), action: Action::Kill, at: 1, passed: 0 };
        assert_eq!(one("done:pause"), armed);
        assert_eq!(one(" done:pause=kill@1 "), armed);
    }

    #[test]
    fn actions_and_passes_are_read() {
        assert_eq!(
            one("a:b=error@3"),
            Armed { name: "a:b".into(), action: Action::Do(Due::Error), at: 3, passed: 0 }
        );
        assert_eq!(one("a:b=delay:250").action, Action::Do(Due::Delay(Duration::from_millis(250))));
        assert_eq!(parse("a=force, b\nc=error@2\n#5").unwrap().len(), 3);
        assert_eq!(parse(" \n").unwrap(), []);
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["a=explode", "a@0", "a@x", "a=delay:soon", "a=delay", "a=kill:9"] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("`{text}`")), "{text}: {error}");
        }
    }
}
