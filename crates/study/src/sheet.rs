//! Results as lines of a CSV file (RFC 4180): a heading for each column, a line for each run.

/// Columns by name, and lines of cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    /// Headings, in the order of the cells.
    pub columns: Vec<String>,
    /// Cells, line by line; a short line ends in empty cells.
    pub lines: Vec<Vec<String>>,
}

impl Sheet {
    /// The whole file, with a line end behind every line. A cell that holds a comma, a quote or a
    /// line end stands in quotes. One that a program for tables would take for a formula, because
    /// it begins with `=`, `+`, `-` or `@` and is no number, gets an apostrophe before it.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        push_line(&mut text, &self.columns, self.columns.len());
        for line in &self.lines {
            push_line(&mut text, line, self.columns.len());
        }
        text
    }
}

fn push_line(text: &mut String, cells: &[String], columns: usize) {
    for column in 0..columns {
        if column > 0 {
            text.push(',');
        }
        push_cell(text, cells.get(column).map_or("", String::as_str));
    }
    text.push('\n');
}

fn push_cell(text: &mut String, cell: &str) {
    let runs = cell.starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err();
    let cell = if runs { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) {
        text.push('"');
        text.push_str(&cell.replace('"', "\"\""));
        text.push('"');
    } else {
        text.push_str(&cell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let text = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let sheet = Sheet {
            columns: text(&["a", "b", "c"]),
            lines: vec![text(&["1", "x,y", "say \"no\""]), text(&["-0.5", "=1+1"]), text(&["\n"])],
        };
        assert_eq!(sheet.to_csv(), "a,b,c\n1,\"x,y\",\"say \"\"no\"\"\"\n-0.5,'=1+1,\n\"\n\",,\n");
    }
}
