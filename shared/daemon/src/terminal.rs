//! Text of others at the terminal: what a cell, a node or a user of theirs has written steers nothing there.

/// The text with everything escaped that a terminal would take for a command or for an order of writing, ends of lines
/// and tabs too: for one value among others.
pub fn plain(text: &str) -> String {
    escaped(text, &[])
}

/// As [`plain`], with ends of lines and tabs as they are: for text that is shown as a whole.
pub fn plain_lines(text: &str) -> String {
    escaped(text, &['\n', '\t'])
}

fn escaped(text: &str, but: &[char]) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !but.contains(&c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Control characters of both sets, and those that turn the direction of what follows.
const fn steers(c: char) -> bool {
    matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left_and_all_else_is() {
        let title = "a\x1b]0;x\x07b\u{9b}2J\x7f\u{202e}c";
        assert_eq!(plain(title), "a\\u{1b}]0;x\\u{7}b\\u{9b}2J\\u{7f}\\u{202e}c");
        assert_eq!(plain_lines(title), plain(title));
        assert_eq!(plain("a\nb\r\tc"), "a\\nb\\r\\tc");
        assert_eq!(plain_lines("a\nb\r\tc\n"), "a\nb\\r\tc\n");
        let text = "Zoë, 日本, שלום, e\u{301}, 🙂 → \\n";
        assert_eq!((plain(text), plain_lines(text)), (text.to_owned(), text.to_owned()));
        assert!(('\0'..=char::MAX).filter(|c| c.is_control()).all(|c| !plain(&c.to_string()).contains(c)));
    }
}
