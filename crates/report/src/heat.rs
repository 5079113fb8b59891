//! Text as a heat map: each token on a background that tells how deep it was computed.

use crate::ansi::{linear, spread};
use crate::escape::{escape, push_escaped};
use crate::scale::exact;

/// Backgrounds from shallow to deep on light paper: cream over teal to indigo, evenly spaced in
/// OKLCH lightness and falling throughout, so the order survives colour blindness and print in
/// grey.
const LIGHT: [&str; SHADES] = [
    "#f6f3dc", "#e4e9cb", "#d0dfbc", "#bad6b1", "#a2cda9", "#89c3a4", "#6fb9a1", "#54afa0",
    "#38a3a0", "#1797a0", "#0d899c", "#087b98", "#096d94", "#085f90", "#17508a", "#22417f",
    "#283372",
];
/// The same order on dark paper, where deep must mean bright.
const DARK: [&str; SHADES] = [
    "#242a51", "#213560", "#17426e", "#004f78", "#015c7b", "#04697e", "#077682", "#048385",
    "#0a9185", "#0b9f82", "#2eab7b", "#59b574", "#7cbd6e", "#9cc46b", "#bacb6c", "#d5d173",
    "#eed780",
];
const SHADES: usize = 17;
const INK_DARK: &str = "#0b0d12";
const INK_LIGHT: &str = "#ffffff";

/// The deepest scale whose legend names each depth.
const LEGEND_DEPTHS: usize = 16;

/// One token of a heat map.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatToken {
    /// The token's text as decoded (invalid UTF-8 already replaced).
    pub text: String,
    /// Recursion depth in `1..=max_depth`, fractions allowed; below 1 or not finite means "no depth
    /// known".
    pub depth: f32,
    /// Shown on hover, such as the token's negative log likelihood.
    pub note: Option<String>,
}

/// A text with a depth for each token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatText {
    /// Caption of the figure.
    pub title: String,
    /// The deepest recursion the model can take; 0 counts as 1, and deeper tokens are coloured as
    /// this one.
    pub max_depth: usize,
    /// The tokens in reading order.
    pub tokens: Vec<HeatToken>,
}

impl HeatText {
    fn known(token: &HeatToken) -> Option<f32> {
        (token.depth.is_finite() && token.depth >= 1.0).then_some(token.depth)
    }

    /// The depth's place on the scale, which is also the number of its class.
    fn shade(&self, depth: f32) -> usize {
        let share = (depth - 1.0) / (self.max_depth.max(2) - 1) as f32;
        (share.clamp(0.0, 1.0) * (SHADES - 1) as f32).round() as usize
    }

    /// Legend and text; the caption is the page's.
    pub(crate) fn body(&self) -> String {
        let mut html = self.legend();
        html.push_str("<div class=\"heat\" dir=\"auto\">");
        for token in &self.tokens {
            self.push_token(&mut html, token);
        }
        html.push_str("</div>\n");
        html
    }

    /// `212 tokens, mean depth 1.84`, or just the count when no depth is known.
    pub(crate) fn summary(&self) -> String {
        let count = self.tokens.len();
        let noun = if count == 1 { "token" } else { "tokens" };
        let depths: Vec<f64> = self.tokens.iter().filter_map(Self::known).map(f64::from).collect();
        if depths.is_empty() {
            return format!("{count} {noun}");
        }
        let mean = depths.iter().sum::<f64>() / depths.len() as f64;
        format!("{count} {noun}, mean depth {mean:.2}")
    }

    fn legend(&self) -> String {
        let max_depth = self.max_depth.max(1);
        let mut counts = vec![0usize; LEGEND_DEPTHS.min(max_depth)];
        let mut unknown = 0;
        for token in &self.tokens {
            match Self::known(token) {
                Some(depth) if max_depth <= LEGEND_DEPTHS => {
                    counts[(depth.round() as usize).clamp(1, max_depth) - 1] += 1;
                }
                Some(_) => {}
                None => unknown += 1,
            }
        }
        let total = self.tokens.len().max(1) as f64;
        let mut html = String::from(
            "<ul class=\"depths\" aria-label=\"Depth of each colour and its share of the tokens\">",
        );
        let shown = counts.len();
        for (index, count) in counts.iter().enumerate() {
            let depth = spread(index, shown, max_depth);
            let shade = self.shade(depth as f32);
            let word = if index == 0 { "depth " } else { "" };
            html.push_str(&format!("<li class=\"h{shade}\"><b>{word}{depth}</b>"));
            if max_depth <= LEGEND_DEPTHS {
                html.push_str(&percent(*count, total));
            }
            html.push_str("</li>");
        }
        if unknown > 0 {
            html.push_str(&format!(
                "<li class=\"none\"><b>no depth</b>{}</li>",
                percent(unknown, total)
            ));
        }
        html.push_str("</ul>\n");
        html
    }

    fn push_token(&self, html: &mut String, token: &HeatToken) {
        let mut tip = visible(&token.text);
        html.push_str("<span");
        match Self::known(token) {
            Some(depth) => {
                html.push_str(&format!(" class=\"h{}\"", self.shade(depth)));
                tip.push_str(&format!("\ndepth {}", exact(f64::from(depth), 3)));
            }
            None => tip.push_str("\nno depth"),
        }
        if let Some(note) = &token.note {
            tip.push('\n');
            tip.push_str(note);
        }
        html.push_str(&format!(" title=\"{}\">", escape(&tip)));
        push_marked(html, &token.text);
        html.push_str("</span>");
    }
}

/// The token in quotes with its white space written out, for the hover text.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 8);
    shown.push('\u{201c}');
    for character in text.chars() {
        match character {
            ' ' => shown.push('\u{2423}'),
            '\n' => shown.push('\u{21b5}'),
            '\t' => shown.push('\u{2192}'),
            other => shown.push(other),
        }
    }
    shown.push('\u{201d}');
    shown
}

/// The token with a mark on each white space that the eye would miss: line breaks, tabs, and spaces
/// that are doubled or all there is. The marks are drawn by the style sheet, so copied text stays
/// the text.
fn push_marked(html: &mut String, text: &str) {
    let blank = text.chars().all(char::is_whitespace);
    let mut before = '\0';
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\n' => html.push_str("<i class=\"nl\"></i>\n"),
            '\t' => html.push_str("<i class=\"tab\">\t</i>"),
            ' ' if blank || before == ' ' || rest.peek() == Some(&' ') => {
                html.push_str("<i class=\"sp\"> </i>")
            }
            other => push_escaped(html, other),
        }
        before = character;
    }
}

/// The style rules of both scales.
pub(crate) fn style() -> String {
    format!(
        "{}@media screen and (prefers-color-scheme: dark) {{\n{}}}\n",
        rules(&LIGHT),
        rules(&DARK)
    )
}

fn rules(shades: &[&str; SHADES]) -> String {
    let mut rules = String::new();
    for (index, color) in shades.iter().enumerate() {
        let ink = ink_on(color);
        rules.push_str(&format!(".h{index}{{background:{color};color:{ink}}}\n"));
    }
    rules
}

fn percent(count: usize, total: f64) -> String {
    format!("{:.0}\u{2009}%", 100.0 * count as f64 / total)
}

fn ink_on(color: &str) -> &'static str {
    if contrast(color, INK_DARK) >= contrast(color, INK_LIGHT) { INK_DARK } else { INK_LIGHT }
}

/// Contrast ratio after WCAG 2: `(lighter + 0.05) / (darker + 0.05)` of the relative luminances.
fn contrast(one: &str, other: &str) -> f64 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

fn luminance(color: &str) -> f64 {
    0.2126 * channel(color, 1) + 0.7152 * channel(color, 3) + 0.0722 * channel(color, 5)
}

/// Linear light of the channel whose two hexadecimal digits begin at `start`.
fn channel(color: &str, start: usize) -> f64 {
    let digits = color.get(start..start + 2);
    let level = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0);
    linear(f64::from(level) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, depth: f32, note: Option<&str>) -> HeatToken {
        HeatToken { text: text.into(), depth, note: note.map(Into::into) }
    }

    #[test]
    fn scales_are_ordered_and_readable() {
        assert!(LIGHT.windows(2).all(|pair| luminance(pair[0]) > luminance(pair[1])));
        assert!(DARK.windows(2).all(|pair| luminance(pair[0]) < luminance(pair[1])));
        for color in LIGHT.iter().chain(&DARK) {
            assert!(contrast(color, ink_on(color)) >= 4.5, "{color}");
        }
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
    }

    #[test]
    fn depth_maps_to_the_whole_scale() {
        let heat = HeatText { max_depth: 3, ..HeatText::default() };
        assert_eq!([1.0, 1.5, 2.0, 3.0, 9.0].map(|depth| heat.shade(depth)), [0, 4, 8, 16, 16]);
        assert_eq!(HeatText { max_depth: 0, ..HeatText::default() }.shade(1.0), 0);
    }

    #[test]
    fn tokens_keep_text_depth_and_note() {
        let heat = HeatText {
            title: String::new(),
            max_depth: 4,
            tokens: vec![
                token(" the", 1.0, Some("NLL 0.31")),
                token("\n", 4.0, None),
                token("?", f32::NAN, None),
            ],
        };
        let body = heat.body();
        assert!(body.contains(
            "<span class=\"h0\" \
                 title=\"\u{201c}\u{2423}the\u{201d}\ndepth 1\nNLL 0.31\"> the</span>"
        ));
        assert!(body.contains("<i class=\"nl\"></i>\n</span>"));
        assert!(body.contains("<span title=\"\u{201c}?\u{201d}\nno depth\">?</span>"));
        assert_eq!(body.matches("<li").count(), 5);
        assert!(body.contains("<b>no depth</b>33\u{2009}%"));
        assert_eq!(heat.summary(), "3 tokens, mean depth 2.50");
    }

    #[test]
    fn only_easily_missed_space_is_marked() {
        let marked = |text: &str| {
            let mut html = String::new();
            push_marked(&mut html, text);
            html
        };
        assert_eq!(marked(" a b"), " a b");
        assert_eq!(marked(" ").matches("sp").count(), 1);
        assert_eq!(marked("a  b").matches("sp").count(), 2);
        assert_eq!(marked("\t").matches("tab").count(), 1);
        assert_eq!(marked("<b>&\u{1b}\u{202e}"), "&lt;b&gt;&amp;\u{241b}\u{fffd}");
    }

    #[test]
    fn deep_scales_have_a_short_legend_from_first_to_last() {
        let heat =
            HeatText { title: String::new(), max_depth: 40, tokens: vec![token("a", 40.0, None)] };
        let legend = heat.legend();
        assert_eq!(legend.matches("<li").count(), LEGEND_DEPTHS);
        assert!(
            legend.contains("<b>depth 1</b>")
                && legend.contains("<b>40</b>")
                && !legend.contains('%')
        );
        assert!(
            HeatText { max_depth: usize::MAX, ..HeatText::default() }
                .legend()
                .contains(&usize::MAX.to_string())
        );
        assert_eq!(HeatText::default().legend().matches("<li").count(), 1);
    }
}
