//! Grids of shaded cells as inline SVG, such as loads by layer and expert.

use crate::escape::escape;
use crate::scale::{drawable, exact};

const WIDTH: f64 = 760.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 8.0;
/// Heights of a row: few rows have tall ones.
const TALLEST: f64 = 26.0;
const ALL_ROWS: f64 = 420.0;
/// Width allowed for a character of a row's name.
const CHAR: f64 = 7.5;
/// Longer names of rows are cut; the hover text has them whole.
const NAME_CHARS: usize = 16;
/// Room for the names of columns and of what they are.
const BELOW: f64 = 46.0;

/// Values by row and column, each cell shaded by its share of the largest value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grid {
    /// Caption of the figure.
    pub title: String,
    /// What the columns are.
    pub x_label: String,
    /// The columns from left to right.
    pub columns: Vec<String>,
    /// The rows from top to bottom, each with its values; a missing or non-finite one is left
    /// blank.
    pub rows: Vec<(String, Vec<f64>)>,
    /// The value of a full shade, if the largest one is not to be it.
    pub full: Option<f64>,
}

impl Grid {
    pub(crate) fn body(&self) -> String {
        let shown = self.rows.iter().map(|(name, _)| name.chars().count().min(NAME_CHARS));
        let left = 12.0 + CHAR * shown.max().unwrap_or(0) as f64;
        let width = (RIGHT - left) / self.columns.len().max(1) as f64;
        let height = (ALL_ROWS / self.rows.len().max(1) as f64).clamp(3.0, TALLEST);
        let bottom = TOP + height * self.rows.len() as f64;
        let values = self.rows.iter().flat_map(|(_, values)| values.iter().copied());
        let largest = values.filter(|value| drawable(*value)).fold(0.0, f64::max);
        let full = self.full.filter(|full| *full > 0.0).unwrap_or(largest);
        let mut svg = format!(
            "<div class=\"plot scroll\"><svg class=\"bars\" viewBox=\"0 0 {WIDTH} {:.0}\" \
             role=\"img\" aria-label=\"{}\">\n",
            bottom + BELOW,
            escape(&self.title)
        );
        for (at, (name, values)) in self.rows.iter().enumerate() {
            let y = TOP + at as f64 * height;
            let cut: String = name.chars().take(NAME_CHARS).collect();
            if height >= 10.0 || at % (12.0 / height).ceil() as usize == 0 {
                svg.push_str(&label(left - 6.0, y + height / 2.0 + 4.0, "end", &cut));
            }
            for (column, value) in values.iter().enumerate().take(self.columns.len()) {
                if !drawable(*value) {
                    continue;
                }
                let shade = if full > 0.0 { (value / full).clamp(0.0, 1.0) } else { 0.0 };
                svg.push_str(&format!(
                    "<rect class=\"bar\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     fill=\"var(--s0)\" fill-opacity=\"{:.3}\"><title>{}, {}: {}</title></rect>\n",
                    left + column as f64 * width,
                    (width - 0.6).max(0.4),
                    (height - 0.6).max(0.4),
                    0.04 + 0.96 * shade,
                    escape(name),
                    escape(&self.columns[column]),
                    exact(*value, 4),
                ));
            }
        }
        let longest = self.columns.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let stride = ((longest as f64 * CHAR + 8.0) / width).ceil().max(1.0) as usize;
        for (column, name) in self.columns.iter().enumerate().step_by(stride) {
            let x = left + (column as f64 + 0.5) * width;
            svg.push_str(&label(x, bottom + 16.0, "middle", name));
        }
        svg.push_str(&label((left + RIGHT) / 2.0, bottom + 36.0, "middle", &self.x_label));
        svg.push_str("</svg></div>\n");
        svg
    }
}

fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        Grid {
            title: "loads <of> experts".into(),
            x_label: "expert".into(),
            columns: (0..3).map(|i| i.to_string()).collect(),
            rows: vec![
                ("layer 0".into(), vec![2.0, 0.0, 4.0]),
                ("layer 1".into(), vec![f64::NAN, 1.0]),
            ],
            full: None,
        }
    }

    #[test]
    fn cells_are_shaded_by_their_share() {
        let svg = grid().body();
        assert_eq!(svg.matches("<rect").count(), 4, "what is no number has no cell");
        assert!(svg.contains("fill-opacity=\"1.000\"><title>layer 0, 2: 4</title>"), "{svg}");
        assert!(svg.contains("fill-opacity=\"0.520\"><title>layer 0, 0: 2</title>"));
        assert!(svg.contains("fill-opacity=\"0.040\"><title>layer 0, 1: 0</title>"));
        assert!(svg.contains("loads &lt;of&gt; experts") && svg.contains(">expert</text>"));
        let fuller = Grid { full: Some(8.0), ..grid() }.body();
        assert!(fuller.contains("fill-opacity=\"0.520\"><title>layer 0, 2: 4</title>"));
    }

    #[test]
    fn nothing_and_many_rows_are_drawn() {
        assert!(Grid::default().body().contains("<svg"));
        let rows = (0..500).map(|i| (format!("layer {i}"), vec![0.0; 3])).collect();
        let many = Grid { rows, ..grid() }.body();
        assert_eq!(many.matches("<rect").count(), 1500);
        assert!(many.matches("text-anchor=\"end\"").count() <= 125);
    }
}
