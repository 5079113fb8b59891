//! Depth colours for text that streams to a terminal, and the filter that makes model output
//! harmless there.

/// Backgrounds from shallow to deep in the 6x6x6 colour cube: navy over teal to yellow, each
/// lighter than the one before, so the order survives colour blindness and print in grey.
const RAMP: [u8; 8] = [18, 24, 30, 36, 72, 114, 185, 227];
const INK_DARK: u8 = 16;
const INK_LIGHT: u8 = 231;
const RESET: &str = "\x1b[0m";

/// Paints tokens by recursion depth with 256-colour ANSI sequences, or leaves them plain.
#[derive(Debug, Clone)]
pub struct DepthColors {
    max_depth: usize,
    enabled: bool,
}

impl DepthColors {
    /// A palette for depths `1..=max_depth`; with `enabled` false nothing here ever emits an
    /// escape.
    pub fn new(max_depth: usize, enabled: bool) -> Self {
        Self { max_depth: max_depth.max(1), enabled }
    }

    /// The token's text, [`sanitize`]d, on the background of its depth; a depth below 1 or not
    /// finite stays plain.
    ///
    /// Line breaks are written outside the colour, so a terminal never fills the rest of a line
    /// with it.
    pub fn paint(&self, text: &str, depth: f32) -> String {
        let text = sanitize(text);
        if !self.enabled || !depth.is_finite() || depth < 1.0 {
            return text;
        }
        let background = RAMP[self.shade(depth)];
        let ink = ink_on(background);
        let mut painted = String::with_capacity(text.len() + 24);
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                painted.push('\n');
            }
            if !line.is_empty() {
                painted.push_str(&format!("\x1b[38;5;{ink};48;5;{background}m{line}{RESET}"));
            }
        }
        painted
    }

    /// One line that names each depth in its colour; more than 16 depths are sampled evenly, first
    /// and last included.
    pub fn legend(&self) -> String {
        let shown = self.max_depth.min(16);
        let mut line = String::from("depth");
        for index in 0..shown {
            let depth = spread(index, shown, self.max_depth);
            line.push(' ');
            line.push_str(&self.paint(&format!(" {depth} "), depth as f32));
        }
        line
    }

    fn shade(&self, depth: f32) -> usize {
        let last = (RAMP.len() - 1) as f32;
        let share = (depth - 1.0) / (self.max_depth.max(2) - 1) as f32;
        (share.clamp(0.0, 1.0) * last).round() as usize
    }
}

/// The depth named at `index` of a legend with `shown` entries: evenly spread over `1..=max_depth`,
/// both ends included.
pub(crate) fn spread(index: usize, shown: usize, max_depth: usize) -> usize {
    let steps = shown.saturating_sub(1).max(1);
    // u128 keeps the product exact for any depth.
    1 + (index as u128 * max_depth.saturating_sub(1) as u128 / steps as u128) as usize
}

/// Black or white, whichever reads better on this colour of the cube.
fn ink_on(color: u8) -> u8 {
    if luminance(color) > 0.18 { INK_DARK } else { INK_LIGHT }
}

/// Relative luminance (WCAG 2) of an entry 16..=231 of the xterm colour cube.
fn luminance(color: u8) -> f64 {
    let cell = u32::from(color.saturating_sub(16));
    0.2126 * of_step(cell / 36) + 0.7152 * of_step(cell / 6 % 6) + 0.0722 * of_step(cell % 6)
}

/// Linear light of one of the six levels of a channel in the colour cube.
fn of_step(step: u32) -> f64 {
    linear(if step == 0 { 0.0 } else { f64::from(55 + 40 * step) / 255.0 })
}

/// Linear light of an sRGB channel, both in `0..=1`.
pub(crate) fn linear(level: f64) -> f64 {
    if level <= 0.04045 { level / 12.92 } else { ((level + 0.055) / 1.055).powf(2.4) }
}

/// Makes control characters of model output harmless in a terminal, keeping newlines and tabs.
///
/// C0 controls and DEL become their control pictures (ESC becomes U+241B), C1 controls become
/// U+FFFD, and characters that turn the writing direction become U+FFFD, since they could make a
/// line read as something else.
pub fn sanitize(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// Whether a character moves the cursor, changes the terminal or turns the direction of text. Ends
/// of lines and tabs do not count.
pub fn steers(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            true
        }
        _ => character.is_control(),
    }
}

/// The visible stand-in for a character that could steer a terminal or a page; others are returned
/// as they are.
pub(crate) fn harmless(character: char) -> char {
    match character {
        _ if !steers(character) => character,
        '\0'..='\u{1f}' => {
            char::from_u32(0x2400 + character as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        '\u{7f}' => '\u{2421}',
        _ => char::REPLACEMENT_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramp_grows_lighter_and_stays_readable() {
        for pair in RAMP.windows(2) {
            assert!(luminance(pair[0]) < luminance(pair[1]), "{pair:?}");
        }
        for color in RAMP {
            let (paper, ink) = (luminance(color), luminance(ink_on(color)));
            let contrast = (paper.max(ink) + 0.05) / (paper.min(ink) + 0.05);
            assert!(contrast >= 4.5, "colour {color} has contrast {contrast}");
        }
    }

    #[test]
    fn depth_picks_the_background() {
        let colors = DepthColors::new(3, true);
        assert_eq!(colors.paint("a", 1.0), "\x1b[38;5;231;48;5;18ma\x1b[0m");
        assert_eq!(colors.paint("a", 3.0), "\x1b[38;5;16;48;5;227ma\x1b[0m");
        assert_eq!(colors.paint("a", 99.0), colors.paint("a", 3.0));
        assert_ne!(colors.paint("a", 2.0), colors.paint("a", 1.0));
        assert_eq!(colors.paint("a", f32::NAN), "a");
        assert_eq!(colors.paint("a", 0.0), "a");
        assert_eq!(DepthColors::new(1, true).paint("a", 1.0), colors.paint("a", 1.0));
        assert_eq!(DepthColors::new(0, true).paint("a", 1.0), colors.paint("a", 1.0));
    }

    #[test]
    fn line_breaks_stay_outside_the_colour() {
        let painted = DepthColors::new(2, true).paint("a\n\nb", 2.0);
        for line in painted.split('\n') {
            assert!(line.is_empty() || line.starts_with("\x1b[") && line.ends_with(RESET));
        }
        assert_eq!(painted.matches('\n').count(), 2);
    }

    #[test]
    fn disabled_colours_emit_no_escape() {
        let colors = DepthColors::new(4, false);
        assert_eq!(colors.paint("\x1b[2Jhi\n", 2.0), "\u{241b}[2Jhi\n");
        assert_eq!(colors.legend(), "depth  1   2   3   4 ");
    }

    #[test]
    fn legend_names_the_first_and_last_depth() {
        let legend = DepthColors::new(100, true).legend();
        assert!(legend.contains(" 1 ") && legend.contains(" 100 "));
        assert_eq!(legend.matches(RESET).count(), 16);
        assert!(
            DepthColors::new(usize::MAX, false).legend().ends_with(&format!(" {} ", usize::MAX))
        );
        assert!(DepthColors::new(1, false).legend().ends_with(" 1 "));
    }

    #[test]
    fn sanitize_leaves_no_control_but_newline_and_tab() {
        let hostile: String = (0u32..0x2100).filter_map(char::from_u32).collect();
        let clean = sanitize(&hostile);
        assert_eq!(clean.chars().count(), hostile.chars().count());
        assert!(clean.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        assert!(!clean.contains('\u{202e}'));
        assert_eq!(sanitize("x\ty\nz \u{e9}\u{1f600}"), "x\ty\nz \u{e9}\u{1f600}");
        assert_eq!(sanitize("\x1b]0;t\x07\r\u{9b}"), "\u{241b}]0;t\u{2407}\u{240d}\u{fffd}");
    }
}
