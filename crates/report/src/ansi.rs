//! Depth colours for text that streams to a terminal, and the filter that makes model output harmless there.

/// Paints tokens by recursion depth with 256-colour ANSI sequences, or leaves them plain.
#[derive(Debug, Clone)]
pub struct DepthColors {
    max_depth: usize,
    enabled: bool,
}

impl DepthColors {
    /// A palette for depths `1..=max_depth`; with `enabled` false nothing here ever emits an escape.
    pub fn new(max_depth: usize, enabled: bool) -> Self {
        Self { max_depth, enabled }
    }

    /// The token's text, sanitized, on the background of its depth; a depth below 1 or not finite stays plain.
    pub fn paint(&self, text: &str, depth: f32) -> String {
        todo!()
    }

    /// One line that names each depth in its colour.
    pub fn legend(&self) -> String {
        todo!()
    }
}

/// Makes control characters of model output harmless in a terminal, keeping newlines and tabs.
pub fn sanitize(text: &str) -> String {
    todo!()
}
