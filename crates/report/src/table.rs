//! Tables for terminal and page, and numbers as people read them.

/// Which cells of a column to set in bold.
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
    /// Column headings.
    pub columns: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
    /// Caption; may be empty.
    pub caption: String,
    /// The column whose best rows are marked.
    pub best: Option<Best>,
}

impl Table {
    /// Plain text with aligned columns, numbers to the right.
    pub fn to_text(&self) -> String {
        todo!()
    }
}

/// `1.2e6` as `1.20 M`.
pub fn human_count(count: f64) -> String {
    todo!()
}

/// `1536` as `1.50 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    todo!()
}

/// Seconds as `59.3 s`, `1 h 02 min`.
pub fn human_duration(seconds: f64) -> String {
    todo!()
}
