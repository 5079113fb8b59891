//! What a line may touch is seen from its file: no more than three files of a room import each
//! other in a circle.
//!
//! An edge goes from a file to each file whose module it names by a path that begins with `crate`,
//! `self` or `super`, in a `use` or elsewhere. A name that a module passes on by `use` counts for
//! the module that defines it. A module's `mod` lines are no edges, and tests count for nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;
use crate::tree::{Tree, room_of};

/// The most files of one room in a circle of imports.
const CIRCLE: usize = 3;

/// Rooms whose largest circle is larger for a time: the number of its files, and the reason.
const LARGER: &[(&str, usize, &str)] = &[];

/// Modules of one room by path (`a::b`; the root is empty), each with what its file imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Circles of imports stay within [`CIRCLE`], or within what [`LARGER`] grants.
pub(super) fn circles(tree: &Tree) -> Vec<String> {
    judge(&rooms(tree), LARGER)
}

fn judge(rooms: &BTreeMap<String, Graph>, larger: &[(&str, usize, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for (room, graph) in rooms {
        let granted = larger.iter().find(|(name, _, _)| name == room);
        let limit = granted.map_or(CIRCLE, |(_, files, _)| *files);
        let circles = components(graph);
        for circle in circles.iter().filter(|circle| circle.len() > limit) {
            let (count, files) = (circle.len(), circle.join(" "));
            found.push(format!(
                "{room}: {count} files import each other in a circle, at most {limit}: {files}"
            ));
        }
        let largest = circles.iter().map(Vec::len).max().unwrap_or(0);
        if let Some((_, files, reason)) = granted
            && largest < *files
        {
            found.push(format!(
                "{room}: the largest circle has {largest} files, {files} are granted: lower or \
                 remove that ({reason})"
            ));
        }
    }
    found
}

/// Modules of one room by path, each with the names that it passes on and where they come from.
type Modules = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The most steps from a name to the module that defines it, against names that pass each other on.
const STEPS: usize = 8;

/// The graph of each room.
fn rooms(tree: &Tree) -> BTreeMap<String, Graph> {
    let sources = tree.sources();
    let mut modules: BTreeMap<String, Modules> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.all_tests) {
        if let Some((room, module)) = place(&source.path) {
            modules.entry(room).or_default().insert(module, passed_on(source));
        }
    }
    let mut rooms: BTreeMap<String, Graph> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.all_tests) {
        let Some((room, module)) = place(&source.path) else { continue };
        let imported = imports(source, &module, &modules[&room]);
        rooms.entry(room).or_default().insert(module, imported);
    }
    rooms
}

/// The room of a file and the module that it is: `crates/a/src/b/mod.rs` is module `b` of `a`.
fn place(path: &str) -> Option<(String, String)> {
    let room = room_of(path)?;
    let (_, inside) = path.split_once("/src/")?;
    let inside = inside.strip_suffix(".rs")?;
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    let module = if matches!(inside, "lib" | "main") { "" } else { inside };
    Some((room.to_owned(), module.replace('/', "::")))
}

/// The names that a file gets by `use`, with the paths written there.
fn passed_on(source: &Source) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for at in source.words("use").filter(|&at| !source.is_test(at)) {
        for path in paths(&source.code[at + "use".len()..]) {
            if let Some(name) = path.last() {
                found.insert(name.clone(), path.clone());
            }
        }
    }
    found
}

/// Modules that `source`, which is `module`, names by paths of its own room.
fn imports(source: &Source, module: &str, modules: &Modules) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for start in ["crate", "self", "super"] {
        for at in source.words(start).filter(|&at| !source.is_test(at)) {
            // Of `super::super::x` the first word leads; `pub(crate)` and `&self` are no paths.
            let inner = source.code[..at].ends_with("::");
            if !inner && source.code[at + start.len()..].trim_start().starts_with("::") {
                for path in paths(&source.code[at..]) {
                    found.extend(target(&path, module, modules));
                }
            }
        }
    }
    found.remove(module);
    found
}

/// The paths that the text begins with: one, or for `a::{b, c::d}` one for each leaf.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut rest = text;
    tree_paths(&mut rest)
}

fn tree_paths(rest: &mut &str) -> Vec<Vec<String>> {
    let mut head = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            *rest = inside;
            return group(rest, &head);
        }
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        *rest = &rest[name.len()..];
        if !name.is_empty() {
            head.push(name);
        }
        match rest.trim_start().strip_prefix("::") {
            Some(after) => *rest = after,
            None => return vec![head],
        }
    }
}

/// The leaves up to the closing brace, each with `head` before it.
fn group(rest: &mut &str, head: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    loop {
        *rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if rest.is_empty() {
            return found;
        }
        if let Some(after) = rest.strip_prefix('}') {
            *rest = after;
            return found;
        }
        for tail in tree_paths(rest) {
            found.push(head.iter().cloned().chain(tail).collect());
        }
        // `x as y` and `*`: on to the next leaf.
        *rest = rest.trim_start_matches(|c: char| c != ',' && c != '}');
    }
}

/// The module that a path written in `module` leads to, nothing if that is not of this room.
fn target(path: &[String], module: &str, modules: &Modules) -> Option<String> {
    resolve(path, module, modules, STEPS)
}

/// The longest beginning of the path that is a module; if that one passes on what comes next, the
/// module that this leads to. A name that is defined in a module belongs to it.
fn resolve(path: &[String], module: &str, modules: &Modules, steps: usize) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        match first.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => {
                at.pop()?;
            }
            _ => break,
        }
        rest = after;
    }
    let begins_here = rest.len() == path.len();
    let mut walked = 0;
    for part in rest {
        at.push(part);
        if !modules.contains_key(&at.join("::")) {
            at.pop();
            break;
        }
        walked += 1;
    }
    let reached = at.join("::");
    let names = modules.get(&reached)?;
    if let Some(source) = rest.get(walked).and_then(|name| names.get(name))
        && steps > 0
        && let Some(home) = resolve(source, &reached, modules, steps - 1)
    {
        return Some(home);
    }
    // A path that begins with a plain name and meets no module leads out of the room.
    (walked > 0 || !begins_here).then_some(reached)
}

/// The circles: sets of modules that reach each other, those of two and more, sorted.
fn components(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|module| (module, reach(graph, module))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for module in graph.keys() {
        let mutual =
            |other: &&String| reached[module].contains(other) && reached[other].contains(module);
        let circle: Vec<String> = graph.keys().filter(mutual).map(|m| shown(m)).collect();
        if circle.len() > 1 && seen.insert(circle.clone()) {
            found.push(circle);
        }
    }
    found
}

fn shown(module: &str) -> String {
    if module.is_empty() { "(root)".to_owned() } else { module.to_owned() }
}

/// Every module that `from` imports, directly or through others.
fn reach<'g>(graph: &'g Graph, from: &String) -> BTreeSet<&'g String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = graph[from].iter().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(graph.get(module).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph of one room `a` with the given files below `src/`.
    fn graph(files: &[(&str, &str)]) -> Graph {
        let files: Vec<(String, &str)> =
            files.iter().map(|(name, text)| (format!("crates/a/src/{name}"), *text)).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        rooms(&Tree::of(&files)).remove("a").expect("the room is there")
    }

    fn imported(graph: &Graph, module: &str) -> Vec<String> {
        graph[module].iter().cloned().collect()
    }

    #[test]
    fn every_form_of_a_path_is_read() {
        let text = "use crate::{b::{B, c::C}, Root, d as other};\nuse super::*;\n\
                    fn f(&self) { self::inner::g(); crate::e::h() }\npub(crate) struct S;\n\
                    // crate::comment\n#[cfg(test)]\nmod tests { use crate::tested; }\n";
        let graph = graph(&[
            ("lib.rs", "mod a;"),
            ("a.rs", text),
            ("a/inner.rs", ""),
            ("b/mod.rs", ""),
            ("b/c.rs", "use super::super::d::D;"),
            ("d.rs", ""),
            ("e.rs", ""),
            ("comment.rs", ""),
            ("tested.rs", ""),
        ]);
        assert_eq!(imported(&graph, "a"), ["", "a::inner", "b", "b::c", "d", "e"]);
        assert_eq!(imported(&graph, "b::c"), ["d"]);
        assert!(imported(&graph, "").is_empty(), "a `mod` line is no import");
    }

    #[test]
    fn names_passed_on_lead_to_their_home() {
        let graph = graph(&[
            ("lib.rs", "mod a;\npub use a::A;\npub use b::*;\nuse other::Thing;"),
            ("a.rs", "pub use inner::A;\npub struct Own;"),
            ("a/inner.rs", "use crate::Thing;"),
            ("b.rs", "use crate::{A, a::Own};"),
            ("c.rs", "use crate::A;"),
        ]);
        assert_eq!(imported(&graph, "b"), ["a", "a::inner"]);
        assert_eq!(imported(&graph, "c"), ["a::inner"]);
        assert_eq!(imported(&graph, "a::inner"), [""]);
    }

    #[test]
    fn circles_are_found_and_lines_are_not() {
        let graph = graph(&[
            ("lib.rs", ""),
            ("a.rs", "use crate::b;"),
            ("b.rs", "use crate::c;"),
            ("c.rs", "use crate::d;"),
            ("d.rs", "use crate::a;\nuse crate::e;"),
            ("e.rs", "use crate::f;"),
            ("f.rs", "use crate::e;"),
        ]);
        assert_eq!(components(&graph), [vec!["a", "b", "c", "d"], vec!["e", "f"]]);
        let rooms = BTreeMap::from([("a".to_owned(), graph)]);
        let found = judge(&rooms, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("4 files") && found[0].ends_with("a b c d"), "{found:?}");
        assert!(judge(&rooms, &[("a", 4, "why")]).is_empty());
        assert!(judge(&rooms, &[("a", 5, "why")])[0].contains("lower or remove"));
    }

    #[test]
    fn a_chain_is_no_circle() {
        let graph = graph(&[
            ("a.rs", "use crate::b;"),
            ("b.rs", "use crate::c;"),
            ("c.rs", "use super::Missing;"),
        ]);
        assert!(components(&graph).is_empty());
    }
}
