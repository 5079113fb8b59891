//! Tables for terminal and page, and numbers as people read them.

use crate::ansi::sanitize;

/// Which cells of a column to mark as best.
///
/// Cells compare by their leading number; cells without one are passed over, and nothing is marked
/// when the rest of the cells (such as a unit) differs from row to row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Best {
    /// The lowest number of this column (0-based) wins.
    Lowest(usize),
    /// The highest number of this column (0-based) wins.
    Highest(usize),
}

/// A table; short rows are padded with empty cells, long ones cut to the columns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Headings, one for each column, left to right.
    pub columns: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
    /// Caption; may be empty.
    pub caption: String,
    /// The column whose best rows are marked.
    pub best: Option<Best>,
}

impl Table {
    /// Plain text: the caption, the headings, a rule and the rows; columns of numbers are aligned
    /// to the right, best cells end in `*`. Each line ends in a newline and holds no control
    /// character.
    pub fn to_text(&self) -> String {
        let best = self.best_cells();
        let cells: Vec<Vec<String>> = (0..self.rows.len())
            .map(|row| {
                (0..self.columns.len())
                    .map(|column| {
                        let mark = match best.first() {
                            Some((_, marked)) if *marked == column => {
                                if best.contains(&(row, column)) { "*" } else { " " }
                            }
                            _ => "",
                        };
                        one_line(self.cell(row, column)) + mark
                    })
                    .collect()
            })
            .collect();
        let headings: Vec<String> = self.columns.iter().map(|heading| one_line(heading)).collect();
        let widths: Vec<usize> = (0..headings.len())
            .map(|column| {
                cells
                    .iter()
                    .map(|row| width(&row[column]))
                    .fold(width(&headings[column]), usize::max)
            })
            .collect();
        let numeric: Vec<bool> =
            (0..headings.len()).map(|column| self.is_numeric(column)).collect();

        let mut text = String::new();
        if !self.caption.is_empty() {
            text.push_str(&one_line(&self.caption));
            text.push('\n');
        }
        push_line(&mut text, &headings, &widths, &numeric);
        let rule: Vec<String> = widths.iter().map(|width| "\u{2500}".repeat(*width)).collect();
        push_line(&mut text, &rule, &widths, &numeric);
        for row in &cells {
            push_line(&mut text, row, &widths, &numeric);
        }
        text
    }

    /// The cell's text, empty where the row is short.
    pub(crate) fn cell(&self, row: usize, column: usize) -> &str {
        self.rows.get(row).and_then(|cells| cells.get(column)).map_or("", String::as_str)
    }

    /// Whether every cell of the column that says something starts with a number.
    pub(crate) fn is_numeric(&self, column: usize) -> bool {
        let mut numbers = 0;
        for row in 0..self.rows.len() {
            match self.cell(row, column).trim() {
                "" | "-" | "\u{2013}" | "\u{2014}" => {}
                cell if leading_number(cell).is_some() => numbers += 1,
                _ => return false,
            }
        }
        numbers > 0
    }

    /// `(row, column)` of each best cell, in row order; ties are all best.
    pub(crate) fn best_cells(&self) -> Vec<(usize, usize)> {
        let (column, sign) = match self.best {
            Some(Best::Lowest(column)) => (column, 1.0),
            Some(Best::Highest(column)) => (column, -1.0),
            None => return Vec::new(),
        };
        if column >= self.columns.len() {
            return Vec::new();
        }
        let parsed: Vec<(usize, f64, &str)> = (0..self.rows.len())
            .filter_map(|row| {
                leading_number(self.cell(row, column))
                    .map(|(number, unit)| (row, number * sign, unit))
            })
            .collect();
        if parsed.windows(2).any(|pair| pair[0].2 != pair[1].2) {
            return Vec::new();
        }
        let lowest = parsed.iter().map(|(_, number, _)| *number).fold(f64::INFINITY, f64::min);
        parsed
            .iter()
            .filter(|(_, number, _)| *number == lowest)
            .map(|(row, _, _)| (*row, column))
            .collect()
    }
}

fn push_line(text: &mut String, cells: &[String], widths: &[usize], numeric: &[bool]) {
    let start = text.len();
    for (column, cell) in cells.iter().enumerate() {
        if column > 0 {
            text.push_str("  ");
        }
        let padding = " ".repeat(widths[column].saturating_sub(width(cell)));
        if numeric[column] {
            text.push_str(&padding);
            text.push_str(cell);
        } else {
            text.push_str(cell);
            text.push_str(&padding);
        }
    }
    text.truncate(start + text[start..].trim_end().len());
    text.push('\n');
}

/// The most characters of a cell or a caption: names in files may be of any length.
const LONGEST: usize = 400;

fn one_line(text: &str) -> String {
    let mut line = sanitize(text).replace(['\n', '\t'], " ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// The finite number a cell starts with, and the rest of the cell, such as its unit.
fn leading_number(cell: &str) -> Option<(f64, &str)> {
    let cell = cell.trim();
    let end = cell
        .char_indices()
        .find(|(index, character)| match character {
            '0'..='9' | '.' => false,
            '-' | '+' => *index != 0 && !cell[..*index].ends_with(['e', 'E']),
            'e' | 'E' => !cell[index + 1..]
                .starts_with(|next: char| next.is_ascii_digit() || "+-".contains(next)),
            _ => true,
        })
        .map_or(cell.len(), |(index, _)| index);
    let number: f64 = cell[..end].parse().ok()?;
    number.is_finite().then(|| (number, cell[end..].trim()))
}

/// A count with three significant digits and its unit: `1.2e6` as `1.20 M`. Units are k, M, B
/// (10^9) and T (10^12); whole numbers below 1000 stay as they are.
pub fn human_count(count: f64) -> String {
    if count.abs() < 1000.0 && count.fract() == 0.0 {
        return format!("{count:.0}");
    }
    with_unit(count, 1000.0, &["", " k", " M", " B", " T"])
}

/// A size with three significant digits and its binary unit: `1536` as `1.50 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    with_unit(bytes as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

fn with_unit(value: f64, base: f64, units: &[&str]) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let mut scaled = value;
    let mut unit = 0;
    // Half a unit in the last digit shown would round up to the base itself.
    while scaled.abs() >= base - 0.5 && unit + 1 < units.len() {
        scaled /= base;
        unit += 1;
    }
    let decimals = match scaled.abs() {
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$}{}", units[unit])
}

/// A time span in seconds as its two leading units: `0.0123` as `12.3 ms`, `59.3` as `59.3 s`,
/// `3725` as `1 h 02 min`.
pub fn human_duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return format!("{seconds} s");
    }
    if seconds < 0.0 {
        return format!("-{}", human_duration(-seconds));
    }
    if seconds == 0.0 {
        return "0 s".to_string();
    }
    if seconds < 0.9995 {
        let (value, unit) =
            if seconds < 0.9995e-3 { (seconds * 1e6, "\u{b5}s") } else { (seconds * 1e3, "ms") };
        return with_unit(value, f64::INFINITY, &[""]) + " " + unit;
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let minutes = (seconds / 60.0).round() as u64;
    let hours = (seconds / 3600.0).round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if minutes < 24 * 60 {
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    } else {
        format!("{} d {:02} h", hours / 24, hours % 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&[&str]], best: Option<Best>) -> Table {
        Table {
            columns: vec!["model".into(), "loss".into()],
            rows: rows
                .iter()
                .map(|row| row.iter().map(|cell| cell.to_string()).collect())
                .collect(),
            caption: "Runs".into(),
            best,
        }
    }

    #[test]
    fn numbers_align_right_and_words_left() {
        let text = table(&[&["a", "10.25"], &["longer", "3.5"]], Some(Best::Lowest(1))).to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Runs");
        assert_eq!(lines[1], "model     loss");
        assert_eq!(lines[3], "a       10.25");
        assert_eq!(lines[4], "longer    3.5*");
        assert_eq!(lines[2].chars().filter(|c| *c == '\u{2500}').count(), 6 + 6);
    }

    #[test]
    fn ragged_rows_and_hostile_cells_stay_in_shape() {
        let text =
            table(&[&["a\x1b[2J\nb"], &["c", "1", "extra"], &[]], Some(Best::Highest(9))).to_text();
        assert_eq!(text.lines().count(), 6);
        assert!(!text.contains('\x1b') && !text.contains("extra"));
        assert_eq!(Table::default().to_text(), "\n\n");
    }

    #[test]
    fn best_compares_only_like_with_like() {
        assert_eq!(
            table(&[&["a", "3.5 ms"], &["b", "2e1 ms"]], Some(Best::Lowest(1))).best_cells(),
            [(0, 1)]
        );
        assert_eq!(
            table(&[&["a", "3"], &["b", "-"], &["c", "3"]], Some(Best::Highest(1)))
                .best_cells()
                .len(),
            2
        );
        assert!(
            table(&[&["a", "900 k"], &["b", "1.2 M"]], Some(Best::Lowest(1)))
                .best_cells()
                .is_empty()
        );
        assert!(
            table(&[&["a", "nan"], &["b", "x"]], Some(Best::Lowest(1))).best_cells().is_empty()
        );
    }

    #[test]
    fn leading_numbers_are_found() {
        assert_eq!(leading_number(" -1.5e-3 s"), Some((-0.0015, "s")));
        assert_eq!(leading_number("62%"), Some((62.0, "%")));
        assert_eq!(leading_number("5 e"), Some((5.0, "e")));
        assert_eq!(leading_number("3 \u{b1} 1"), Some((3.0, "\u{b1} 1")));
        for word in ["", "-", "e5", "inf", "nan", "1.2.3", "x1"] {
            assert_eq!(leading_number(word), None, "{word}");
        }
    }

    #[test]
    fn counts_keep_three_digits() {
        let cases: [(f64, &str); 9] = [
            (0.0, "0"),
            (950.0, "950"),
            (1.2e6, "1.20 M"),
            (12_340.0, "12.3 k"),
            (999_499.0, "999 k"),
            (999_500.0, "1.00 M"),
            (-2.5e9, "-2.50 B"),
            (3.25, "3.25"),
            (5e15, "5000 T"),
        ];
        for (count, text) in cases {
            assert_eq!(human_count(count), text);
        }
        assert_eq!(human_count(f64::NAN), "NaN");
    }

    #[test]
    fn bytes_use_binary_units() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.50 KiB");
        assert_eq!(human_bytes(1 << 20), "1.00 MiB");
        assert_eq!(human_bytes((1 << 20) - 1), "1.00 MiB");
        assert_eq!(human_bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations_never_show_sixty() {
        let cases = [
            (0.0, "0 s"),
            (0.000_001_5, "1.50 \u{b5}s"),
            (0.0123, "12.3 ms"),
            (0.9999, "1.0 s"),
            (59.3, "59.3 s"),
            (59.96, "1 min 00 s"),
            (3599.7, "1 h 00 min"),
            (3725.0, "1 h 02 min"),
            (86_399.0, "1 d 00 h"),
            (183_600.0, "2 d 03 h"),
            (-5.0, "-5.0 s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
        assert_eq!(human_duration(f64::INFINITY), "inf s");
    }
}
