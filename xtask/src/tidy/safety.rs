//! Where unsafe code may be, and that each piece of it says why it is sound.

use super::markdown::{code_words, section};
use crate::source::Source;
use crate::tree::Tree;

/// How far above its code the reason may stand.
const REASON_LINES: usize = 12;

/// Outside of `kernels` only the functions listed below `## Unsafe code` in ARCHITECTURE.md use
/// `unsafe`; everywhere a `SAFETY:` comment (or a `# Safety` section) is near.
pub(super) fn unsafe_code(tree: &Tree) -> Vec<String> {
    let listed =
        section(tree.text("ARCHITECTURE.md"), "Unsafe code").map(code_words).unwrap_or_default();
    let mut found = Vec::new();
    for source in tree.sources() {
        let functions = source.functions();
        for at in source.words("unsafe").filter(|&at| needs_a_reason(&source.code[at..])) {
            let line = source.line(at);
            let mut inside = functions.iter().filter(|f| f.range.contains(&at));
            let allowed =
                inside.any(|f| listed.contains(&format!("{}::{}", source.path, f.name).as_str()));
            if !source.path.starts_with("crates/kernels/") && !allowed {
                found.push(format!("{}:{line}: unsafe code outside of kernels", source.path));
            }
            if !has_reason(&source, line) && !is_under_a_contract(&source, at) {
                found.push(format!(
                    "{}:{line}: no SAFETY comment within {REASON_LINES} lines above",
                    source.path
                ));
            }
        }
    }
    found
}

/// A type like `unsafe fn(u8)` promises nothing.
fn needs_a_reason(code: &str) -> bool {
    let next = code["unsafe".len()..].trim_start();
    let is_pointer = next.strip_prefix("fn").is_some_and(|rest| rest.trim_start().starts_with('('));
    !is_pointer && !next.starts_with("extern")
}

fn has_reason(source: &Source, line: usize) -> bool {
    let first = line.saturating_sub(REASON_LINES + 1);
    let near: Vec<&str> = source.text.lines().skip(first).take(line - first).collect();
    near.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

/// The caller's duties of an `unsafe fn` may be told once for many, in a `# Safety` section further
/// up (a trait's, for its methods), or where its body uses them.
fn is_under_a_contract(source: &Source, at: usize) -> bool {
    let is_function = source.code[at + "unsafe".len()..].trim_start().starts_with("fn ");
    let body = source
        .functions()
        .into_iter()
        .find(|f| f.range.start > at && source.line(f.range.start) == source.line(at));
    let told = source.text[..at].contains("# Safety")
        || body.is_some_and(|f| source.text[f.range].contains("SAFETY:"));
    is_function && told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let architecture = "## Unsafe code\n`crates/data/src/shard.rs::map` opens one.\n";
        unsafe_code(&Tree::of(&[("ARCHITECTURE.md", architecture), (path, text)]))
    }

    #[test]
    fn explained_code_in_kernels_passes() {
        let text = "fn f() {\n    // SAFETY: nothing happens.\n    unsafe {}\n}\n\
                    /// # Safety\n/// None.\nunsafe fn g() {}\ntype T = unsafe fn(u8);\n";
        assert!(
            found("crates/kernels/src/x.rs", text).is_empty(),
            "{:?}",
            found("crates/kernels/src/x.rs", text)
        );
    }

    #[test]
    fn a_missing_reason_is_found() {
        let far = |code: &str| format!("// SAFETY: too far\n{}{code}\n", "\n".repeat(13));
        assert_eq!(found("crates/kernels/src/x.rs", &far("unsafe fn g() {}")).len(), 1);
        assert_eq!(found("crates/kernels/src/x.rs", &far("fn g() { unsafe {} }")).len(), 1);
    }

    #[test]
    fn a_trait_speaks_for_its_methods_but_not_for_blocks() {
        let text = |code: &str| {
            format!(
                "/// # Safety\n/// All methods: as told.\ntrait V {{\n{}{code}\n}}\n",
                "\n".repeat(13)
            )
        };
        assert!(found("crates/kernels/src/x.rs", &text("unsafe fn f();")).is_empty());
        assert_eq!(found("crates/kernels/src/x.rs", &text("fn f() { unsafe {} }")).len(), 1);
    }

    #[test]
    fn another_room_needs_a_place_on_the_list() {
        let text = "fn map() {\n    // SAFETY: read only.\n    unsafe {}\n}\n";
        assert!(found("crates/data/src/shard.rs", text).is_empty());
        assert_eq!(found("crates/data/src/other.rs", text).len(), 1);
        assert_eq!(found("crates/data/src/shard.rs", &text.replace("map", "sneak")).len(), 1);
    }

    #[test]
    fn words_about_unsafe_are_free() {
        assert!(
            found("crates/data/src/x.rs", "//! unsafe\nconst A: &str = \"unsafe\";\n").is_empty()
        );
    }
}
