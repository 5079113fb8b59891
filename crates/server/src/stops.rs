//! Finds stop strings in text that arrives in pieces, and holds back what may become one.

/// Watches for the first stop string to be complete; of those complete at the same place the
/// longest counts.
#[derive(Debug)]
pub struct StopMatcher {
    strings: Vec<String>,
    keep: bool,
    held: String,
}

/// A stop string was found.
#[derive(Debug, PartialEq, Eq)]
pub struct StopHit {
    /// The stop string as the request gave it: `stop_reason` of the answer.
    pub string: String,
}

impl StopMatcher {
    /// With `keep`, the stop string itself is part of the text that comes out.
    pub fn new(strings: &[String], keep: bool) -> Self {
        Self { strings: strings.to_vec(), keep, held: String::new() }
    }

    /// Adds `piece`; appends to `out` what is certain to be text. After a hit nothing more must be
    /// added.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<StopHit> {
        if self.strings.is_empty() {
            out.push_str(piece);
            return None;
        }
        self.held.push_str(piece);
        let found = self
            .strings
            .iter()
            .filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at, s)));
        if let Some((end, start, string)) = found.min_by_key(|&(end, start, _)| (end, start)) {
            out.push_str(&self.held[..if self.keep { end } else { start }]);
            let hit = StopHit { string: string.clone() };
            self.held.clear();
            return Some(hit);
        }
        let keep_from = self.held.len() - self.longest_open();
        out.extend(self.held.drain(..keep_from));
        None
    }

    /// Nothing more comes: what was held back is text.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn longest_open(&self) -> usize {
        self.strings.iter().map(|string| open_bytes(&self.held, string)).max().unwrap_or(0)
    }
}

/// Bytes of the longest end of `held` that begins `string` without completing it.
fn open_bytes(held: &str, string: &str) -> usize {
    let most = held.len().min(string.len().saturating_sub(1));
    let from = held.len() - most;
    (from..held.len())
        .filter(|&at| held.is_char_boundary(at))
        .find(|&at| string.starts_with(&held[at..]))
        .map_or(0, |at| held.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strings: &[&str], keep: bool, pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let strings: Vec<String> = strings.iter().map(|&s| s.to_owned()).collect();
        let mut stops = StopMatcher::new(&strings, keep);
        let mut outs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let hit = stops.push(piece, &mut out);
            outs.push(out);
            if let Some(hit) = hit {
                return (outs, Some(hit.string));
            }
        }
        let mut out = String::new();
        stops.finish(&mut out);
        outs.push(out);
        (outs, None)
    }

    #[test]
    fn across_borders() {
        assert_eq!(run(&["END"], false, &["a", "E", "N", "D", "b"]).0.concat(), "a");
        assert_eq!(
            run(&["END"], true, &["aE", "NDb"]),
            (vec!["a".into(), "END".into()], Some("END".into()))
        );
        assert_eq!(run(&["aab"], false, &["aa", "aa", "b"]).0, ["", "aa", ""]);
        assert_eq!(
            run(&["\u{1F600}\u{1F601}"], false, &["x\u{1F600}", "y"]).0,
            ["x", "\u{1F600}y", ""]
        );
    }

    #[test]
    fn the_first_to_be_complete_and_then_the_longest() {
        assert_eq!(run(&["abc", "b"], false, &["abc"]), (vec!["a".into()], Some("b".into())));
        assert_eq!(run(&["b", "ab"], false, &["xab"]), (vec!["x".into()], Some("ab".into())));
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = "the cat\n\nsat \u{e9}\u{e8} on the mat\n\nend";
        for stop in ["\n\n", "\u{e9}\u{e8} on", "mat\n\ne", "zzz", "t", "the cat\n\nsat"] {
            let whole = run(&[stop, "never"], false, &[text]);
            for size in 1..9 {
                let chars: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = chars.chunks(size).map(|c| c.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let cut = run(&[stop, "never"], false, &pieces);
                assert_eq!((cut.0.concat(), cut.1), (whole.0.concat(), whole.1.clone()));
            }
        }
    }
}
