//! Text as a heat map: each token on a background that tells how deep it was computed.

/// One token of a heat map.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatToken {
    /// The token's text as decoded (invalid UTF-8 already replaced).
    pub text: String,
    /// Recursion depth in `1..=max_depth`, fractions allowed; below 1 or not finite means "no depth known".
    pub depth: f32,
    /// Shown on hover, such as the token's negative log likelihood.
    pub note: Option<String>,
}

/// A text with a depth for each token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatText {
    /// Caption of the figure.
    pub title: String,
    /// The deepest recursion the model can take.
    pub max_depth: usize,
    /// The tokens in reading order.
    pub tokens: Vec<HeatToken>,
}
