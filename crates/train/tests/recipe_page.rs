//! `docs/recipes.md` has every field of a recipe, with the words that stand at the field and the
//! default that the program has. Below its marker the page is made here:
//! `LATHE_WRITE_DOCS=1 cargo test --release -p train --test recipe_page`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::adapters::Relaxation;
use model::{ExpertRouterConfig, MlpConfig, ModelConfig, RotaryScaling, RouterConfig};
use serde_json::{Value, json};
use train::{Recipe, ScheduleConfig};

const PAGE: &str = "docs/recipes.md";
/// What follows is made.
const MARKER: &str = "<!-- made by crates/train/tests/recipe_page.rs -->\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A field of a struct, or a variant of an enum: its name, its type if it has one, its words.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    of: String,
    words: String,
    /// Fields of a variant.
    fields: Vec<Entry>,
}

/// The public structs and enums of a file by name.
type Items = BTreeMap<String, Vec<Entry>>;

fn items(file: &Path) -> Items {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let (mut found, mut words) = (Items::new(), String::new());
    let mut inside: Option<(String, bool)> = None;
    let mut variant: Option<Entry> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(more) = line.strip_prefix("///") {
            words = format!("{words} {}", more.trim()).trim().to_owned();
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let said = std::mem::take(&mut words);
        match (&inside, &mut variant) {
            (None, _) => {
                let opens = ["pub struct ", "pub enum "].iter().find_map(|kind| {
                    let name = line.strip_prefix(kind)?.strip_suffix(" {")?;
                    Some((name.split(':').next().unwrap_or(name), *kind == "pub enum "))
                });
                if let Some((name, is_enum)) = opens {
                    found.insert(name.to_owned(), Vec::new());
                    inside = Some((name.to_owned(), is_enum));
                }
            }
            (Some((name, _)), None) if line == "}" => {
                // What is empty has no fields to show.
                found.entry(name.clone()).or_default();
                inside = None;
            }
            (Some((name, _)), Some(open)) if line == "}," => {
                let closed = open.clone();
                found.get_mut(name).expect("open").push(closed);
                variant = None;
            }
            (Some(_), Some(open)) => open.fields.extend(field(line, said)),
            (Some((_, true)), None) if line.ends_with(" {") => {
                let name = line.trim_end_matches(" {").to_owned();
                variant = Some(Entry { name, of: String::new(), words: said, fields: vec![] });
            }
            (Some((name, true)), None) => {
                // `Variant,` or `Variant(settings::Config) = "name",` of a list.
                let short = line.trim_end_matches(',');
                let (short, listed) = short.split_once(" = ").unwrap_or((short, ""));
                let (short, of) = short.split_once('(').unwrap_or((short, ""));
                let name_of =
                    if listed.is_empty() { snake(short) } else { listed.replace('"', "") };
                let of = of.trim_end_matches(')').to_owned();
                let entry = Entry { name: name_of, of, words: said, fields: vec![] };
                found.get_mut(name).expect("open").push(entry);
            }
            (Some((name, false)), None) => {
                found.get_mut(name).expect("open").extend(field(line, said));
            }
        }
    }
    found
}

/// `pub name: Type,` with or without the first word.
fn field(line: &str, words: String) -> Option<Entry> {
    let line = line.strip_prefix("pub ").unwrap_or(line).strip_suffix(',')?;
    let (name, of) = line.split_once(": ")?;
    Some(Entry { name: name.to_owned(), of: of.to_owned(), words, fields: vec![] })
}

/// `MiddleCycle` as recipes write it.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// The type of a value in a recipe.
fn kind(of: &str, own: &Items, all: &Items) -> String {
    let inner = of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>'));
    if let Some(inner) = inner {
        return kind(inner, own, all);
    }
    let listed = of.strip_prefix("Vec<").and_then(|of| of.strip_suffix('>'));
    if let Some(listed) = listed {
        return format!("list: {}", kind(listed, own, all));
    }
    let table = of.strip_prefix("BTreeMap<String, ").and_then(|of| of.strip_suffix('>'));
    if let Some(entry) = table {
        return format!("table: {}", kind(entry, own, all));
    }
    match of.rsplit("::").next().unwrap_or(of) {
        "u64" | "usize" | "u32" => "whole number".to_owned(),
        "f64" | "f32" => "number".to_owned(),
        "bool" => "true, false".to_owned(),
        "String" | "Part" => "text".to_owned(),
        "LayerSet" => "`\"all\"`, or list: whole number".to_owned(),
        name => {
            let variants = own.get(name).or_else(|| all.get(name));
            let variants = variants.unwrap_or_else(|| panic!("a type {of} that nobody lists"));
            let names: Vec<String> =
                variants.iter().map(|v| format!("`\"{}\"`", snake(&v.name))).collect();
            names.join(", ")
        }
    }
}

/// What the choices of a field mean, if it has some that say so.
fn choices(of: &str, own: &Items, all: &Items) -> String {
    let variants = own.get(of).or_else(|| all.get(of));
    let told = variants.into_iter().flatten().filter(|variant| !variant.words.is_empty());
    let told: Vec<String> =
        told.map(|v| format!("`{}`: {}", snake(&v.name), v.words.trim_end_matches('.'))).collect();
    if told.is_empty() { String::new() } else { format!(" {}.", told.join("; ")) }
}

/// A table of fields with the defaults of `defaults`.
fn table(fields: &[Entry], defaults: &Value, own: &Items, all: &Items) -> String {
    let mut page = "| field | values | default | meaning |\n|---|---|---|---|\n".to_owned();
    for field in fields {
        let default = match &defaults[&field.name] {
            Value::Null => "from the others".to_owned(),
            Value::String(text) if text.is_empty() => "`\"\"`".to_owned(),
            value => format!("`{value}`"),
        };
        let meaning = format!("{}{}", field.words, choices(&field.of, own, all));
        let kind = kind(&field.of, own, all);
        page += &format!("| `{}` | {kind} | {default} | {} |\n", field.name, cell(&meaning));
    }
    page
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The members of a list, each with its own fields.
fn members(list: &str, at: &str, folder: &str, every: &[Value], all: &Items) -> String {
    let source = root().join("crates/model/src").join(folder);
    let members = &items(&source.join("mod.rs"))[list];
    assert_eq!(members.len(), every.len(), "{list}");
    let mut page = String::new();
    for member in members {
        let file = member.of.split("::").next().expect("a file");
        let own = items(&source.join(format!("{file}.rs")));
        let defaults = every.iter().find(|value| value["kind"] == *member.name).expect("listed");
        page += &format!("\n### `{at}.kind = \"{}\"`\n\n{}\n", member.name, member.words);
        let mut fields = own.get("Config").cloned().unwrap_or_default();
        // Settings that a member takes from another stand among its own.
        while let Some(at) = fields.iter().position(|field| field.of.ends_with("::Config")) {
            let other = fields[at].of.split("::").next().expect("a file").to_owned();
            let inner = items(&source.join(format!("{other}.rs")));
            fields.splice(at..=at, inner["Config"].clone());
        }
        if let Some(at) = fields.iter().position(|field| field.of == "Places") {
            fields.splice(at..=at, all["Places"].clone());
        }
        let mut defaults = defaults.clone();
        // Members of lists have tables of their own.
        for field in fields.iter_mut().filter(|field| field.of.ends_with("RouterConfig")) {
            let kind = defaults[&field.name]["kind"].clone();
            field.name += ".kind";
            defaults[&field.name] = kind;
        }
        if !fields.is_empty() {
            page += &format!("\n{}", table(&fields, &defaults, &own, all));
        }
    }
    page
}

/// All that follows the marker.
fn page() -> String {
    let model = root().join("crates/model/src");
    let config = items(&root().join("crates/train/src/config.rs"));
    let mut all = config.clone();
    for file in [
        "config.rs",
        "layout.rs",
        "attention_settings.rs",
        "norm.rs",
        "multipliers.rs",
        "rotary/mod.rs",
        "mlp/activation.rs",
        "kv/mod.rs",
        "routers/scorer.rs",
        "routers/mod.rs",
        "mlp/mod.rs",
        "expert_routers/mod.rs",
        "expert_routers/balance.rs",
        "expert_routers/room.rs",
        "adapters/mod.rs",
        "adapters/places.rs",
        "adapters/lora.rs",
    ] {
        all.extend(items(&model.join(file)));
    }
    let defaults = defaults();
    let mut page = String::new();
    for section in &config["Recipe"] {
        page += &format!("\n## `[{}]`\n\n{}\n", section.name, section.words);
        let name = section.of.as_str();
        let values = &defaults[&section.name];
        if section.name == "schedule" {
            page += &schedules(&config[name], &all);
            continue;
        }
        let mut fields = all[name].clone();
        let groups: Vec<Entry> = fields.extract_if(.., |field| is_group(field)).collect();
        // Members of lists have tables of their own below.
        for field in &mut fields {
            if field.of.ends_with("Config") || field.of == "Relaxation" {
                field.name += ".kind";
            }
        }
        let mut flat = values.clone();
        for list in ["mlp", "router", "relax"] {
            flat[format!("{list}.kind")] = values[list]["kind"].clone();
        }
        page += &format!("\n{}", table_of_kinds(&fields, &flat, &all));
        for group in groups {
            let (name, mut fields) = (&group.name, all[&group.of].clone());
            let mut given = values[name].clone();
            for list in fields.iter_mut().filter(|field| field.of == "RotaryScaling") {
                let kind = given[&list.name]["kind"].clone();
                list.name += ".kind";
                given[&list.name] = kind;
            }
            page += &format!("\n### `[model.{name}]`\n\n{}\n\n", group.words);
            page += &table_of_kinds(&fields, &given, &all);
        }
        if section.name == "model" {
            let scalings: Vec<Value> = RotaryScaling::all().iter().map(|s| json!(s)).collect();
            let (list, at) = ("RotaryScaling", "model.rotary.scaling");
            page += &members(list, at, "rotary", &scalings, &all);
            let json = |value| serde_json::to_value(value).expect("JSON");
            let routers: Vec<Value> = RouterConfig::all().iter().map(|r| json!(r)).collect();
            let relaxed: Vec<Value> = Relaxation::all().iter().map(|r| json(json!(r))).collect();
            page += &members("RouterConfig", "model.router", "routers", &routers, &all);
            page += &members("MlpConfig", "model.mlp", "mlp", &mlps(), &all);
            let of_experts: Vec<Value> =
                ExpertRouterConfig::all().iter().map(|r| json!(r)).collect();
            let (list, at) = ("ExpertRouterConfig", "model.mlp.router");
            page += &members(list, at, "expert_routers", &of_experts, &all);
            page += &members("Relaxation", "model.relax", "adapters", &relaxed, &all);
        }
    }
    page
}

/// The recipe with every field, also those that are not written at their defaults.
fn defaults() -> Value {
    let mut defaults = serde_json::to_value(Recipe::default()).expect("JSON");
    defaults["model"] = train::whole_config(&ModelConfig::default());
    defaults
}

/// Every MLP with all its fields.
fn mlps() -> Vec<Value> {
    let whole = |mlp: MlpConfig| {
        let config = ModelConfig { mlp, ..ModelConfig::default() };
        train::whole_config(&config)["mlp"].clone()
    };
    MlpConfig::all().into_iter().map(whole).collect()
}

/// Whether a field is a table of its own.
fn is_group(field: &Entry) -> bool {
    field.of.ends_with("Settings") || field.of == "Multipliers"
}

/// As [`table`], with the names of lists as their members have them.
fn table_of_kinds(fields: &[Entry], defaults: &Value, all: &Items) -> String {
    table(fields, defaults, &Items::new(), all)
}

/// The kinds of schedule, each with its fields.
fn schedules(kinds: &[Entry], all: &Items) -> String {
    let mut page = String::new();
    for variant in kinds {
        let name = snake(&variant.name);
        let given: ScheduleConfig =
            serde_json::from_value(json!({ "kind": name })).expect("a schedule");
        let values = json!(given);
        page += &format!("\n### `schedule.kind = \"{name}\"`\n\n{}\n\n", variant.words);
        page += &table(&variant.fields, &values, &Items::new(), all);
    }
    page
}

#[test]
fn the_page_has_every_field_as_it_is() {
    let file = root().join(PAGE);
    let whole = std::fs::read_to_string(&file).expect("the page");
    let (head, found) = whole.split_once(MARKER).expect("the marker");
    let made = page();
    if std::env::var_os("LATHE_WRITE_DOCS").is_some() {
        std::fs::write(&file, format!("{head}{MARKER}{made}")).expect("writes");
        return;
    }
    let differs = made.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(
        found == made,
        "{PAGE} is not what the code says ({differs:?}): LATHE_WRITE_DOCS=1 cargo test --release \
         -p train --test recipe_page"
    );
}

/// Every field that the program writes has a row.
#[test]
fn no_field_is_forgotten() {
    let made = page();
    let mut wanted = Vec::new();
    for (_, section) in defaults().as_object().expect("sections") {
        for (name, field) in section.as_object().expect("fields") {
            let has_page = made.contains(&format!("### `[model.{name}]`"));
            let group = field.as_object().filter(|group| has_page || !group.contains_key("kind"));
            match group {
                Some(group) => wanted.extend(group.keys().cloned()),
                None => wanted.push(name.clone()),
            }
        }
    }
    for member in RotaryScaling::all() {
        wanted.extend(json!(member).as_object().expect("fields").keys().cloned());
    }
    for member in RouterConfig::all() {
        wanted.extend(json!(member).as_object().expect("fields").keys().cloned());
    }
    for member in ExpertRouterConfig::all() {
        wanted.extend(json!(member).as_object().expect("fields").keys().cloned());
    }
    for member in mlps() {
        wanted.extend(member.as_object().expect("fields").keys().cloned());
    }
    for member in Relaxation::all() {
        wanted.extend(json!(member).as_object().expect("fields").keys().cloned());
    }
    for name in wanted {
        let listed = [format!("| `{name}` |"), format!("| `{name}.kind` |")];
        let known = name == "kind" || listed.iter().any(|row| made.contains(row));
        assert!(known, "no row for {name}");
    }
}
