//! Patterns of names in the parameter table, in which `*` stands for any characters.

/// The most stars of a pattern: no name has more parts.
const STARS: usize = 8;

/// A pattern that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct PatternError {
    /// The pattern as it was written.
    pub found: String,
    /// What it should be.
    pub expected: String,
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters, none included.
pub fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut inner) = name.strip_prefix(first).and_then(|name| name.strip_suffix(last)) else {
        return false;
    };
    // The earliest place of each piece leaves most to those behind it.
    for piece in middle.split('*') {
        match inner.find(piece) {
            None => return false,
            Some(at) => inner = &inner[at + piece.len()..],
        }
    }
    true
}

/// # Errors
/// A pattern with too many stars, or one that fits none of `names`.
pub fn check(pattern: &str, names: &[&str]) -> Result<(), PatternError> {
    let refused = |expected| Err(PatternError { found: pattern.to_owned(), expected });
    if pattern.matches('*').count() > STARS {
        return refused(format!("at most {STARS} stars in a pattern"));
    }
    if !names.iter().any(|name| fits(pattern, name)) {
        let some = names[..names.len().min(6)].join(", ");
        return refused(format!("a pattern that fits a weight, as in {some}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, expected) in [
            ("embed", "embed", true),
            ("embed", "embed.x", false),
            ("layers.*", "layers.3.query", true),
            ("*.query", "layers.3.query", true),
            ("*.query", "relax.3.query.1.up", false),
            ("layers.*.query", "layers.3.query", true),
            ("layers.*.query", "layers.3.query.query", true),
            ("layers.*.query", "layers.3.key_value", false),
            ("*", "", true),
            ("l*s.*y", "layers.3.query", true),
            ("l*s.*y", "layers.3.queries", false),
            ("", "norm", false),
            ("a*a", "a", false),
            ("*b*b*", "abc", false),
            ("a*a", "aa", true),
            ("*b*a*", "ab", false),
            ("a*b*c*c", "abbc", false),
            ("a*b*c*c", "abcbcc", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
