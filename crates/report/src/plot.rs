//! Line charts and bar charts as inline SVG.

use std::collections::BTreeMap;

use crate::escape::escape;
use crate::scale::{Axis, decimate, drawable, exact, nice_ticks, padded, range, short};

/// The most points of one series that reach the page.
pub const MAX_POINTS: usize = 1000;

const WIDTH: f64 = 760.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 318.0;
const RIGHT: f64 = WIDTH - 14.0;
const HEIGHT: f64 = 366.0;
/// Width allowed for a character of an axis label, enough for the larger type of narrow screens.
const CHAR: f64 = 8.0;
/// Series colours in the style sheet.
const COLORS: usize = 8;
/// Up to this many points, a curve shows each of them.
const MARKED: usize = 32;
/// Longer bar labels are cut; the hover text has them whole.
const LABEL_CHARS: usize = 18;
/// Up to this many bars, each carries its value.
const LABELLED_BARS: usize = 24;

/// One curve of a [`Chart`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// `(x, y)` in drawing order; a point that is not finite leaves a gap. Long curves are thinned
    /// to [`MAX_POINTS`] with the lowest and highest point of each stretch kept.
    pub points: Vec<(f64, f64)>,
    /// Draw with dashes, as for a baseline.
    pub dashed: bool,
}

/// Curves over a shared pair of axes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// Caption of the figure.
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// Logarithmic x axis; points with x <= 0 are left out.
    pub log_x: bool,
    /// Values are shares of one: each curve stands on those before it, filled down to them, on an
    /// axis from 0 to 1. Readouts are of the shares themselves.
    pub shares: bool,
    /// The curves; an empty list draws empty axes.
    pub series: Vec<Series>,
}

/// One colour of a [`Bars`] chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BarSeries {
    /// Name in the legend.
    pub name: String,
    /// One value for each label; a missing or non-finite one draws no bar.
    pub values: Vec<f64>,
}

/// Grouped bars, such as the share of tokens at each depth.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bars {
    /// Caption of the figure.
    pub title: String,
    /// What the labels are.
    pub x_label: String,
    /// What the heights are, with the unit.
    pub y_label: String,
    /// One group of bars for each label.
    pub labels: Vec<String>,
    /// One bar in each group for each series.
    pub series: Vec<BarSeries>,
    /// Values are fractions of one, to be written as per cent.
    pub percent: bool,
}

/// A point with the number of its unbroken stretch.
#[derive(Clone, Copy)]
struct Placed {
    x: f64,
    /// Where it is drawn.
    y: f64,
    /// Down to where the area below it is filled.
    base: f64,
    value: f64,
    stretch: usize,
}

impl Chart {
    pub(crate) fn body(&self) -> String {
        let mut placed: Vec<Vec<Placed>> =
            self.series.iter().map(|series| self.place(&series.points)).collect();
        if self.shares {
            stack(&mut placed);
        }
        let xs = range(placed.iter().flatten().map(|point| point.x));
        let ys = match self.shares {
            true => (0.0, 1.0),
            false => padded(range(placed.iter().flatten().map(|point| point.y)), 0.05),
        };
        // Widening a range may push its low end below zero, which a logarithmic axis cannot show.
        let log = self.log_x && xs.0 > 0.0 && placed.iter().any(|points| !points.is_empty());
        let y_axis = Axis::new(ys, false, BOTTOM, TOP);
        let y_ticks = y_axis.ticks(6);
        let left = left_margin(&y_ticks);
        let x_axis = Axis::new(xs, log, left, RIGHT);

        let names: Vec<(&str, bool)> =
            self.series.iter().map(|series| (series.name.as_str(), series.dashed)).collect();
        let mut svg = legend(&names, false);
        svg.push_str(&open("curves", &self.title, &self.x_label, &names));
        push_y_axis(&mut svg, &y_axis, &y_ticks, left, &self.y_label);
        for (tick, label) in x_axis.ticks(7) {
            let x = x_axis.pixel(tick);
            svg.push_str(&format!("<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>"));
            svg.push_str(&text(x.clamp(left, RIGHT - 4.0), BOTTOM + 20.0, "middle", &label));
        }
        push_x_axis(&mut svg, left, &self.x_label);
        for (index, series) in self.series.iter().enumerate() {
            let kept = decimate(
                &placed[index],
                MAX_POINTS,
                |point| x_axis.share(point.x),
                |point| point.y,
            );
            if self.shares {
                push_area(&mut svg, index, &kept, &x_axis, &y_axis);
            }
            push_curve(&mut svg, index, series, &kept, &x_axis, &y_axis);
        }
        svg.push_str("</svg></div>\n");
        svg
    }

    fn place(&self, points: &[(f64, f64)]) -> Vec<Placed> {
        let mut stretch = 0;
        let mut placed = Vec::with_capacity(points.len());
        for (x, y) in points {
            if drawable(*x) && drawable(*y) && !(self.log_x && *x <= 0.0) {
                placed.push(Placed { x: *x, y: *y, base: 0.0, value: *y, stretch });
            } else {
                stretch += 1;
            }
        }
        placed
    }
}

/// Puts the points of each curve on top of those of the curves before it at the same x.
fn stack(curves: &mut [Vec<Placed>]) {
    let mut reached: BTreeMap<u64, f64> = BTreeMap::new();
    for point in curves.iter_mut().flatten() {
        let below = reached.entry(point.x.to_bits()).or_default();
        (point.base, point.y) = (*below, *below + point.value);
        *below = point.y;
    }
}

/// What is between the points and their bases.
fn push_area(svg: &mut String, index: usize, points: &[Placed], x_axis: &Axis, y_axis: &Axis) {
    for stretch in points.chunk_by(|a, b| a.stretch == b.stretch) {
        let above = stretch.iter().map(|point| (point.x, point.y));
        let below = stretch.iter().rev().map(|point| (point.x, point.base));
        let corners = above.chain(below).map(|(x, y)| {
            let (x, y) = (x_axis.pixel(x), y_axis.pixel(y));
            format!("{x:.1} {y:.1}")
        });
        let path = corners.collect::<Vec<_>>().join("L");
        let color = color(index);
        svg.push_str(&format!("<path fill=\"{color}\" fill-opacity=\"0.3\" d=\"M{path}Z\"/>"));
    }
}

fn push_curve(
    svg: &mut String,
    index: usize,
    series: &Series,
    points: &[Placed],
    x_axis: &Axis,
    y_axis: &Axis,
) {
    if points.is_empty() {
        return;
    }
    let mut path = String::new();
    let mut values = String::new();
    for (at, point) in points.iter().enumerate() {
        let starts = at == 0 || points[at - 1].stretch != point.stretch;
        let ends = points.get(at + 1).is_none_or(|next| next.stretch != point.stretch);
        path.push(if starts { 'M' } else { 'L' });
        path.push_str(&format!("{:.1} {:.1}", x_axis.pixel(point.x), y_axis.pixel(point.y)));
        if starts && ends {
            // A closed stretch of no length is drawn as a dot by the round line cap.
            path.push('Z');
        }
        let gap = if at == 0 { "" } else { " " };
        values.push_str(&format!("{gap}{},{}", exact(point.x, 6), exact(point.value, 5)));
    }
    let name = escape(&series.name);
    let color = color(index);
    let dense = if points.len() > 300 { " dense" } else { "" };
    let dash = dash(index, series.dashed);
    svg.push_str(&format!(
        "<path class=\"line{dense}{dash}\" stroke=\"{color}\" d=\"{path}\" \
         data-name=\"{name}\" data-v=\"{values}\">\
         <title>{name}</title></path>\n"
    ));
    if points.len() > MARKED {
        return;
    }
    for point in points {
        svg.push_str(&format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.8\" fill=\"{color}\">\
             <title>{name}: {}, {}</title></circle>",
            x_axis.pixel(point.x),
            y_axis.pixel(point.y),
            exact(point.x, 6),
            exact(point.value, 5)
        ));
    }
}

impl Bars {
    pub(crate) fn body(&self) -> String {
        let scale = if self.percent { 100.0 } else { 1.0 };
        let values =
            self.series.iter().flat_map(|series| series.values.iter().take(self.labels.len()));
        let (low, high) = range(values.map(|value| value * scale).chain([0.0]));
        let (low, high) =
            (if low < 0.0 { low * 1.08 } else { 0.0 }, if high > 0.0 { high * 1.08 } else { 0.0 });
        let y_axis = Axis::new(round_up((low, high)), false, BOTTOM, TOP);
        let mut y_ticks = y_axis.ticks(6);
        if self.percent {
            y_ticks.iter_mut().for_each(|(_, label)| label.push_str("\u{2009}%"));
        }
        let left = left_margin(&y_ticks);

        let names: Vec<(&str, bool)> =
            self.series.iter().map(|series| (series.name.as_str(), false)).collect();
        let mut svg = legend(&names, true);
        svg.push_str(&open("bars", &self.title, &self.x_label, &names));
        push_y_axis(&mut svg, &y_axis, &y_ticks, left, &self.y_label);
        self.push_groups(&mut svg, &y_axis, left, scale);
        push_x_axis(&mut svg, left, &self.x_label);
        let zero = y_axis.pixel(0.0);
        svg.push_str(&format!(
            "<path class=\"axis\" d=\"M{left:.1} {zero:.1}H{RIGHT}\"/></svg></div>\n"
        ));
        svg
    }

    fn push_groups(&self, svg: &mut String, y_axis: &Axis, left: f64, scale: f64) {
        let group = (RIGHT - left) / self.labels.len().max(1) as f64;
        let inner = (group * 0.74).min(64.0 * self.series.len().max(1) as f64);
        let bar = inner / self.series.len().max(1) as f64;
        let valued = self.labels.len() * self.series.len() <= LABELLED_BARS;
        let longest = self
            .labels
            .iter()
            .map(|label| label.chars().count().min(LABEL_CHARS))
            .max()
            .unwrap_or(0);
        let stride = ((longest as f64 * CHAR + 10.0) / group).ceil().max(1.0) as usize;
        let zero = y_axis.pixel(0.0);
        for (position, label) in self.labels.iter().enumerate() {
            let middle = left + (position as f64 + 0.5) * group;
            if position % stride == 0 {
                svg.push_str(&text(middle, BOTTOM + 20.0, "middle", &clipped(label)));
            }
            for (index, series) in self.series.iter().enumerate() {
                let value = match series.values.get(position) {
                    Some(value) if drawable(*value) => value * scale,
                    _ => continue,
                };
                let unit = if self.percent { "\u{2009}%" } else { "" };
                let x = middle - inner / 2.0 + index as f64 * bar;
                let end = y_axis.pixel(value);
                let name = if series.name.is_empty() {
                    String::new()
                } else {
                    format!("{}\n", series.name)
                };
                svg.push_str(&format!(
                    "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     rx=\"1.5\" fill=\"{}\"><title>{}{}: {}{unit}</title></rect>\n",
                    x + bar * 0.03,
                    end.min(zero),
                    bar * 0.94,
                    (end - zero).abs(),
                    color(index),
                    escape(&name),
                    escape(label),
                    exact(value, 4),
                ));
                if valued {
                    let at = if value < 0.0 { end + 15.0 } else { end - 6.0 };
                    svg.push_str(&text(x + bar / 2.0, at, "middle", &short(value, 3)));
                }
            }
        }
    }
}

/// The range with its ends moved out to ticks where that costs little, so that bars stand under a
/// labelled line.
fn round_up((low, high): (f64, f64)) -> (f64, f64) {
    let (low, high) = if low == high { (0.0, 1.0) } else { (low, high) };
    let (_, step) = nice_ticks(low, high, 6);
    (moved_out(low, step), moved_out(high, step))
}

/// The next multiple of `step` away from 0, unless it is more than 0.6 steps further.
fn moved_out(end: f64, step: f64) -> f64 {
    let rounded = (end / step).abs().ceil() * step * end.signum();
    if (rounded - end).abs() <= step * 0.6 { rounded } else { end }
}

fn color(index: usize) -> String {
    format!("var(--s{})", index % COLORS)
}

/// Dashes for a baseline; dots where the colours begin again.
fn dash(index: usize, dashed: bool) -> &'static str {
    match (dashed, index / COLORS % 2) {
        (true, _) => " dash",
        (false, 1) => " dots",
        (false, _) => "",
    }
}

/// The legend, left out when no series has a name.
fn legend(names: &[(&str, bool)], filled: bool) -> String {
    if names.iter().all(|(name, _)| name.is_empty()) {
        return String::new();
    }
    let mut html = String::from("<ul class=\"legend\">");
    for (index, (name, dashed)) in names.iter().enumerate() {
        let color = color(index);
        let (width, height) = if filled { (12, 12) } else { (26, 10) };
        let shape = if filled {
            format!("<rect width=\"12\" height=\"12\" rx=\"2\" fill=\"{color}\"/>")
        } else {
            format!(
                "<path class=\"line{}\" stroke=\"{color}\" d=\"M2 5H24\"/>",
                dash(index, *dashed)
            )
        };
        let swatch = format!(
            "<svg width=\"{width}\" height=\"{height}\" aria-hidden=\"true\">{shape}</svg>"
        );
        html.push_str(&format!("<li>{swatch}{}</li>", escape(name)));
    }
    html.push_str("</ul>\n");
    html
}

fn open(class: &str, title: &str, x_label: &str, names: &[(&str, bool)]) -> String {
    let names: Vec<&str> =
        names.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let described =
        if names.is_empty() { title.to_string() } else { format!("{title}: {}", names.join(", ")) };
    format!(
        "<div class=\"plot scroll\"><svg class=\"{class}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"{}\" data-x=\"{}\" \
         data-top=\"{TOP}\" data-bottom=\"{BOTTOM}\">\n",
        escape(&described),
        escape(x_label)
    )
}

fn clipped(label: &str) -> String {
    match label.char_indices().nth(LABEL_CHARS) {
        Some(_) => label.chars().take(LABEL_CHARS - 1).chain(['\u{2026}']).collect(),
        None => label.to_string(),
    }
}

fn left_margin(ticks: &[(f64, String)]) -> f64 {
    let longest = ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
    (longest as f64 * CHAR + 12.0).max(30.0)
}

fn push_y_axis(svg: &mut String, axis: &Axis, ticks: &[(f64, String)], left: f64, label: &str) {
    for (tick, name) in ticks {
        let y = axis.pixel(*tick);
        svg.push_str(&format!("<path class=\"grid\" d=\"M{left:.1} {y:.1}H{RIGHT}\"/>"));
        svg.push_str(&text(left - 8.0, y + 4.0, "end", name));
    }
    svg.push_str(&text(0.0, 13.0, "start", label));
    svg.push('\n');
}

fn push_x_axis(svg: &mut String, left: f64, label: &str) {
    svg.push_str(&format!("<path class=\"axis\" d=\"M{left:.1} {BOTTOM}H{RIGHT}\"/>"));
    svg.push_str(&text((left + RIGHT) / 2.0, BOTTOM + 42.0, "middle", label));
    svg.push('\n');
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(content))
}
