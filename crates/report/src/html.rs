//! The page builder: headings, prose, figures and tables in one self-contained HTML file.

use crate::{Bars, Chart, HeatText, Table};

/// A page under construction; blocks appear in the order of the calls.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
}

impl Page {
    /// An empty page with its heading; an empty subtitle is left out.
    pub fn new(title: &str, subtitle: &str) -> Self {
        todo!()
    }
    /// A section heading.
    pub fn section(&mut self, heading: &str) -> &mut Self {
        todo!()
    }
    /// A paragraph of plain text.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        todo!()
    }
    /// A row of big figures: (label, value, note).
    pub fn cards(&mut self, cards: &[(&str, &str, &str)]) -> &mut Self {
        todo!()
    }
    /// A numbered table.
    pub fn table(&mut self, table: Table) -> &mut Self {
        todo!()
    }
    /// A numbered figure of curves.
    pub fn chart(&mut self, chart: Chart) -> &mut Self {
        todo!()
    }
    /// A numbered figure of grouped bars.
    pub fn bars(&mut self, bars: Bars) -> &mut Self {
        todo!()
    }
    /// A numbered figure of text coloured by depth.
    pub fn heat(&mut self, heat: HeatText) -> &mut Self {
        todo!()
    }
    /// The whole file.
    pub fn render(&self) -> String {
        todo!()
    }
}
