//! The page builder: headings, prose, figures and tables in one self-contained HTML file.

use crate::escape::escape;
use crate::{Bars, Chart, Grid, HeatText, Table, heat};

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");

/// A page under construction; blocks appear in the order of the calls, figures and tables are
/// numbered.
///
/// All text is plain: it is escaped here, and control characters become visible symbols. The same
/// calls give the same bytes. The file needs nothing beside it and its content policy lets nothing
/// in.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    subtitle: String,
    body: String,
    figures: usize,
    tables: usize,
}

impl Page {
    /// An empty page with its heading; an empty subtitle is left out.
    pub fn new(title: &str, subtitle: &str) -> Self {
        Self {
            title: title.to_string(),
            subtitle: subtitle.to_string(),
            body: String::new(),
            figures: 0,
            tables: 0,
        }
    }

    /// Adds a heading of the second level.
    pub fn section(&mut self, heading: &str) -> &mut Self {
        self.push(&format!("<h2>{}</h2>\n", escape(heading)))
    }

    /// A paragraph of plain text; its line breaks are kept.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<p dir=\"auto\">{}</p>\n", escape(text)))
    }

    /// A row of big figures: (label, value, note); an empty note is left out.
    pub fn cards(&mut self, cards: &[(&str, &str, &str)]) -> &mut Self {
        if cards.is_empty() {
            return self;
        }
        self.body.push_str("<dl class=\"cards\">\n");
        for (label, value, note) in cards {
            self.body.push_str(&format!(
                "<div class=\"card\"><dt>{}</dt><dd class=\"value\">{}</dd>",
                escape(label),
                escape(value)
            ));
            if !note.is_empty() {
                self.body.push_str(&format!("<dd class=\"note\">{}</dd>", escape(note)));
            }
            self.body.push_str("</div>\n");
        }
        self.push("</dl>\n")
    }

    /// A numbered table, in the order of its rows; columns of numbers are aligned to the right,
    /// best cells are bold.
    pub fn table(&mut self, table: Table) -> &mut Self {
        self.tables += 1;
        let numeric: Vec<bool> =
            (0..table.columns.len()).map(|column| table.is_numeric(column)).collect();
        let mut html = format!(
            "<figure class=\"scroll\"><table>\n\
             <caption><span class=\"number\">Table {}.</span>{}</caption>\n<thead><tr>",
            self.tables,
            escape(&table.caption)
        );
        for (heading, &numeric) in table.columns.iter().zip(&numeric) {
            let class = cell_class(numeric, false);
            html.push_str(&format!("<th scope=\"col\"{class}>{}</th>", escape(heading)));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        let best = table.best_cells();
        for row in 0..table.rows.len() {
            html.push_str("<tr>");
            for (column, &numeric) in numeric.iter().enumerate() {
                let class = cell_class(numeric, best.contains(&(row, column)));
                html.push_str(&format!("<td{class}>{}</td>", escape(table.cell(row, column))));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></figure>\n");
        self.push(&html)
    }

    /// A numbered figure of curves.
    pub fn chart(&mut self, chart: Chart) -> &mut Self {
        self.figure("", &chart.title, "", &chart.body())
    }

    /// A numbered figure of grouped bars.
    pub fn bars(&mut self, bars: Bars) -> &mut Self {
        self.figure("", &bars.title, "", &bars.body())
    }

    /// A numbered figure of shaded cells.
    pub fn grid(&mut self, grid: Grid) -> &mut Self {
        self.figure("", &grid.title, "", &grid.body())
    }

    /// A numbered figure of text coloured by depth.
    pub fn heat(&mut self, heat: HeatText) -> &mut Self {
        self.figure(" class=\"text\"", &heat.title, &heat.summary(), &heat.body())
    }

    /// The page as one file that fetches nothing from elsewhere.
    pub fn render(&self) -> String {
        let title = escape(&self.title);
        let subtitle = match self.subtitle.as_str() {
            "" => String::new(),
            text => format!("<p class=\"subtitle\">{}</p>\n", escape(text)),
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n\
             <style>\n{STYLE}{}</style>\n</head>\n<body>\n\
             <main>\n<header>\n<h1>{title}</h1>\n{subtitle}</header>\n{}</main>\n\
             <div id=\"tip\" role=\"status\" hidden></div>\n\
             <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            heat::style(),
            self.body
        )
    }

    fn figure(&mut self, class: &str, title: &str, aside: &str, body: &str) -> &mut Self {
        self.figures += 1;
        let mut caption =
            format!("<span class=\"number\">Figure {}.</span>{}", self.figures, escape(title));
        if !aside.is_empty() {
            caption.push_str(&format!(" <span class=\"aside\">({})</span>", escape(aside)));
        }
        self.push(&format!(
            "<figure{class}>\n<figcaption>{caption}</figcaption>\n{body}</figure>\n"
        ))
    }

    fn push(&mut self, html: &str) -> &mut Self {
        self.body.push_str(html);
        self
    }
}

/// Numbers are aligned to the right, the best cells are bold.
fn cell_class(numeric: bool, best: bool) -> &'static str {
    match (numeric, best) {
        (true, true) => " class=\"num best\"",
        (true, false) => " class=\"num\"",
        (false, true) => " class=\"best\"",
        (false, false) => "",
    }
}
