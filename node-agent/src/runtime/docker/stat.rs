//! `/proc/PID/stat` (proc(5)).

/// The name of a process, and what stands behind it, from the third field on. The name is the process's own choice and may hold
/// anything, also `)`.
pub(super) fn parts(stat: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    Some((name, tail.split_ascii_whitespace()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_bracket_on() {
        for name in ["node", "a) (b", "", "7 8 9"] {
            let line = format!("7 ({name}) S 1 2");
            let (found, fields) = parts(&line).unwrap();
            assert_eq!((found, fields.collect::<Vec<_>>()), (name, vec!["S", "1", "2"]));
        }
        assert!(["", "7", "7 (x", "7 x)"].iter().all(|odd| parts(odd).is_none()));
    }
}
