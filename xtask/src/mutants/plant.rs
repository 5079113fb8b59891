//! Writes mutants into a file so that one build holds them all: each is asleep unless a variable of
//! the environment names its number.

use std::ops::Range;

use super::find::{Kind, Mutant};

/// The variable that wakes a mutant: its number.
pub(super) const VARIABLE: &str = "LATHE_MUTANT";

/// What a room needs at its root for planted files.
pub(super) const SWITCH: &str = r#"
/// Wakes one of the mutants that are planted in this room.
#[doc(hidden)]
pub mod planted_mutants {
    /// Whether mutant `number` is the one that runs.
    pub fn wakes(number: usize) -> bool {
        static WHICH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *WHICH.get_or_init(|| {
            let which = std::env::var("LATHE_MUTANT").ok();
            which.and_then(|number| number.parse().ok()).unwrap_or(0)
        }) == number
    }
}
"#;

/// A file with mutants in it, and for each of them its number and where it stands.
pub(super) struct Planted {
    pub(super) text: String,
    pub(super) places: Vec<(usize, Range<usize>)>,
}

/// `text` with `mutants`, given with their numbers; their ranges must not overlap.
pub(super) fn plant(text: &str, mutants: &[(usize, &Mutant)]) -> Planted {
    let mut order: Vec<&(usize, &Mutant)> = mutants.iter().collect();
    // A body that returns at once may begin where an expression of it does.
    order.sort_by_key(|(_, mutant)| (mutant.range.start, mutant.range.end));
    let (mut planted, mut at) = (Planted { text: String::new(), places: Vec::new() }, 0);
    for (number, mutant) in order {
        planted.text.push_str(&text[at..mutant.range.start]);
        let start = planted.text.len();
        planted.text.push_str(&both(*number, mutant));
        planted.places.push((*number, start..planted.text.len()));
        at = mutant.range.end;
    }
    planted.text.push_str(&text[at..]);
    planted
}

/// Whether two mutants can stand in one build.
pub(super) fn apart(a: &Mutant, b: &Mutant) -> bool {
    a.file != b.file || a.range.end <= b.range.start || b.range.end <= a.range.start
}

fn both(number: usize, mutant: &Mutant) -> String {
    let (wakes, old) = (format!("crate::planted_mutants::wakes({number})"), &mutant.old);
    match &mutant.kind {
        Kind::Expression(new) => format!("(if {wakes} {{ {new} }} else {{ {old} }})"),
        Kind::Statement => format!("if !{wakes} {{ {old} }}"),
        // Without brackets, behind which a semicolon would have to stand.
        Kind::Statements(new) => format!("if {wakes} {{ {new} }} else {{ {old} }}"),
        Kind::Body(value) => format!("if {wakes} {{ return {value}; }} "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::find::in_file;
    use super::*;

    #[test]
    fn a_body_and_its_first_expression_stand_in_one_file() {
        let text = "fn f(a: u32) -> bool {\n    a > 2\n}\n";
        let all = in_file("x.rs", text).expect("Rust");
        let body = all.iter().find(|m| matches!(m.kind, Kind::Body(_))).expect("a body");
        let first = all.iter().find(|mutant| mutant.old == "a > 2").expect("a comparison");
        assert!(apart(body, first) && body.range.start == first.range.start);
        for order in [[(1, body), (2, first)], [(2, first), (1, body)]] {
            let planted = plant(text, &order);
            syn::parse_file(&planted.text).expect("Rust");
            assert!(planted.text.find("wakes(1)") < planted.text.find("wakes(2)"));
        }
    }

    #[test]
    fn planted_files_are_rust_and_hold_both_forms() {
        let text =
            "fn f(a: u32) -> u32 {\n    a + 2\n}\nfn g(v: &mut Vec<u8>) {\n    v.clear();\n}\n";
        let all = in_file("x.rs", text).expect("Rust");
        let sum = all.iter().find(|mutant| mutant.old == "a + 2").expect("a sum");
        let call = all.iter().find(|mutant| mutant.kind == Kind::Statement).expect("a call");
        assert!(apart(sum, call) && !apart(sum, sum));
        let planted = plant(text, &[(7, call), (3, sum)]);
        syn::parse_file(&planted.text).expect("Rust");
        for part in ["wakes(3)", "a + 2", "wakes(7)", "v.clear();"] {
            assert!(planted.text.contains(part), "{part} in {}", planted.text);
        }
        for (number, place) in planted.places {
            assert!(planted.text[place].contains(&format!("wakes({number})")));
        }
        assert!(SWITCH.contains(VARIABLE));
    }
}
