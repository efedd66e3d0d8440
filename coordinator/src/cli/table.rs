//! Text in columns. What is in them may be a cell's or a node's: nothing of it steers a terminal or ends a line.

use berth_daemon::terminal::plain;

/// Rows below a head, columns as wide as their widest cell, two spaces between.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|cell| plain(&cell))).collect();
    let mut widths = [0; N];
    for row in std::iter::once(&head).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    std::iter::once(&head).chain(&rows).map(line).collect()
}

/// One thing: names on the left, values on the right.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {}\n", plain(value))).collect()
}

/// Nothing is shown as a dash, so that a column never looks forgotten.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_have_no_tail() {
        let rows = vec![["a".into(), "running".into()], ["longer-é".into(), "x".into()]];
        assert_eq!(table(["USER", "STATE"], rows), "USER      STATE\na         running\nlonger-é  x\n");
        assert_eq!(table(["USER"], vec![]), "USER\n");
        let hostile = vec![["\x1b[2Ja\nb".into(), "x".into()]];
        assert_eq!(table(["USER", "STATE"], hostile), "USER           STATE\n\\u{1b}[2Ja\\nb  x\n");
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
        assert_eq!(facts(&[("a", "\x1b]52;c;eA==\x07\nb".into())]), "a  \\u{1b}]52;c;eA==\\u{7}\\nb\n");
    }
}
