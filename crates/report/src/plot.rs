//! Line charts and bar charts as inline SVG.

/// One curve of a [`Chart`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// `(x, y)` in drawing order; a point that is not finite leaves a gap.
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
