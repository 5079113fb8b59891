//! Recipes: TOML with presets and `--set`, where a key that means nothing is an error with its line
//! and the nearest name.

use std::path::Path;

use anyhow::{Context, Result, bail};
use model::{ModelConfig, RouterConfig};
use serde_json::{Map, Value};
use study::Setting;
use toml::de::{DeTable, DeValue};
use train::Recipe;

use crate::{cache, renamed_fields};

/// The most bytes of a recipe.
const LONGEST: u64 = 1 << 20;

/// Reads the recipe at `path` and applies `--set a.b=c` entries in order.
pub fn load(path: &Path, sets: &[String]) -> Result<Recipe> {
    parse(&file(path)?, sets).with_context(|| format!("recipe {}", path.display()))
}

/// The text of the recipe at `path`.
///
/// # Errors
/// A file that cannot be read, is no text or too long for a recipe.
pub fn file(path: &Path) -> Result<String> {
    files::read_text(path, LONGEST)
        .with_context(|| format!("reading the recipe {}", path.display()))
}

/// The text of a recipe file (`.toml`), or of a recipe of the preset of this name, whose vocabulary
/// is left to the data.
pub fn text_of(name: &str) -> Result<String> {
    if name.ends_with(".toml") {
        return file(Path::new(name));
    }
    Ok(format!("[model]\npreset = {}\n", Value::String(name.to_owned())))
}

/// The recipe of a file (`.toml`), or of a preset with a vocabulary of 4096.
pub fn named(name: &str, sets: &[String]) -> Result<Recipe> {
    if name.ends_with(".toml") {
        return load(Path::new(name), sets);
    }
    parse(&format!("[model]\npreset = \"{name}\"\nvocab_size = 4096\n"), sets)
}

/// A recipe from its text and entries of `--set`.
pub fn parse(text: &str, sets: &[String]) -> Result<Recipe> {
    let settings: Result<Vec<Setting>> = sets.iter().map(|entry| setting(entry)).collect();
    with(text, &settings?, "--set")
}

/// A recipe from its text and settings over it, which `place` gave.
pub fn with(text: &str, settings: &[Setting], place: &str) -> Result<Recipe> {
    let spans = DeTable::parse(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut given: Value =
        toml::from_str::<Value>(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    for (path, value) in settings {
        set(&mut given, path, value.clone(), place)?;
    }
    if let Some(path) = not_finite(&given, "") {
        bail!("{path} is not finite, expected a number other than nan and inf");
    }
    let recipe = resolve(given.clone())?;
    let mut known = serde_json::to_value(&recipe)?;
    known["model"] = train::whole_config(&recipe.model);
    if let Some(unknown) = unknown_key(&given, &known, "") {
        let place = line_of(text, spans.get_ref(), &unknown.path)
            .map_or_else(|| format!("in {place}"), |line| format!("line {line}"));
        if let Some(new) = renamed_fields::field_of(&unknown.path) {
            bail!("{place}: `{}` was renamed: use `{new}`, with the same values", unknown.path);
        }
        let near =
            unknown.nearest().map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        bail!(
            "{place}: unknown key `{}`, expected one of {}{near}",
            unknown.path,
            unknown.known.join(", ")
        );
    }
    // A vocabulary left to the data is filled in when the data is opened, and what depends on it is
    // checked then; until it is known it is as large as one may be.
    let mut filled = recipe.clone();
    if filled.model.vocab_size == 0 {
        filled.model.vocab_size = 1 << 24;
    }
    filled.check()?;
    // A start may bring along what changes nothing; what the recipe itself says must not.
    if let Err(idle) = filled.model.check_effects()
        && given.pointer(&format!("/model/{}", idle.field.replace('.', "/"))).is_some()
    {
        bail!(idle);
    }
    Ok(recipe)
}

/// A preset or the start's model first, then what the recipe says, then defaults for the rest.
fn resolve(mut given: Value) -> Result<Recipe> {
    let mut base = serde_json::to_value(Recipe::default())?;
    let preset =
        given.get_mut("model").and_then(Value::as_object_mut).and_then(|m| m.remove("preset"));
    let names_preset = preset.is_some();
    if let Some(name) = preset {
        let Some(name) = name.as_str() else {
            bail!("model.preset is {name}, expected a name in quotes")
        };
        let Some(model) = model::presets::preset(name) else {
            let names = model::presets::names();
            let near = nearest(name, names.iter().map(String::as_str));
            let hint = near.map_or_else(
                || "a name that `lathe presets` lists".to_owned(),
                |name| format!("a preset, such as \"{name}\""),
            );
            bail!("model.preset is \"{name}\", expected {hint}");
        };
        base["model"] = serde_json::to_value(model)?;
    }
    for table in ["start", "distill"] {
        imported(&mut given, table)?;
    }
    let start = given.pointer("/start/checkpoint").and_then(Value::as_str).unwrap_or("");
    if !start.is_empty() && !names_preset {
        let model = config_of("start.checkpoint", start)?;
        base["model"] = serde_json::to_value(model)?;
    }
    if given.pointer("/train/micro_batch").is_none()
        && let Some(batch) = given.pointer("/train/batch").and_then(Value::as_u64)
    {
        base["train"]["micro_batch"] = train::usual_micro_batch(batch).into();
    }
    // A dense model of its own says so in one word.
    let own = !names_preset && start.is_empty();
    if own && given.pointer("/model/sharing").and_then(Value::as_str) == Some("none") {
        base["model"]["recursions"] = 1.into();
        base["model"]["router"] = serde_json::to_value(RouterConfig::FIXED)?;
    }
    overlay(&mut base, given);
    typed(base)
}

/// Puts the import of a folder or file of others in the place of its name: the room that trains
/// opens checkpoints alone.
fn imported(given: &mut Value, table: &str) -> Result<()> {
    let Some(named) = given.pointer_mut(&format!("/{table}/checkpoint")) else { return Ok(()) };
    let Some(name) = named.as_str().filter(|name| !name.is_empty()) else { return Ok(()) };
    let path = cache::checkpoint_of(Path::new(name));
    let path = path.with_context(|| format!("{table}.checkpoint"))?;
    if path.as_path() != Path::new(name) {
        let path = path.to_str().with_context(|| {
            format!(
                "{table}.checkpoint is imported to {}, expected a folder whose name is UTF-8: \
                 name one by --cache-dir",
                path.display()
            )
        })?;
        *named = path.into();
    }
    Ok(())
}

/// The model of the checkpoint that `field` of a recipe names.
pub(crate) fn config_of(field: &str, checkpoint: &str) -> Result<ModelConfig> {
    train::config_of(Path::new(checkpoint)).map_err(|error| {
        let told = cache::told_of_recipe(checkpoint, &error);
        let error = anyhow::Error::from(error);
        let error = match told {
            Some(told) => error.context(told),
            None => error,
        };
        error.context(field.to_owned())
    })
}

fn read(value: Value) -> Result<Recipe, serde_path_to_error::Error<serde_json::Error>> {
    serde_path_to_error::deserialize(value)
}

/// The typed recipe. The path makes a message like `model.heads: invalid type: string "x", expected
/// usize` possible.
fn typed(base: Value) -> Result<Recipe> {
    read(base.clone()).map_err(|error| {
        let said = error.inner().to_string();
        let mut path = error.path().to_string();
        // Tables with a `kind` are read as a whole, also those within them, so that the path ends
        // at the outermost.
        while let Some(field) = guilty(&base, &path, &said) {
            path = format!("{path}.{field}");
        }
        let kinds = kinds(&base, &path).unwrap_or_default();
        anyhow::anyhow!("{path}: {said}{kinds}")
    })
}

/// The field of the table at `path` without which the error is another than `said`, or none.
fn guilty(base: &Value, path: &str, said: &str) -> Option<String> {
    let table = format!("/{}", path.replace('.', "/"));
    let mut fields = base.pointer(&table)?.as_object()?.keys().filter(|field| *field != "kind");
    let found = fields.find(|field| {
        let mut without = base.clone();
        let table = without.pointer_mut(&table).and_then(Value::as_object_mut);
        table.map(|table| table.remove(*field));
        let other = read(without).err().map(|other| other.inner().to_string());
        other.is_none_or(|other| other != said && !other.starts_with("missing field"))
    });
    found.cloned()
}

/// For the table at `path` that lacks its `kind`: which kinds there are, by what is said to a kind
/// that there is not.
fn kinds(base: &Value, path: &str) -> Option<String> {
    let mut with = base.clone();
    let table = with.pointer_mut(&format!("/{}", path.replace('.', "/")))?.as_object_mut()?;
    if table.contains_key("kind") {
        return None;
    }
    table.insert("kind".into(), Value::String(String::new()));
    let said = read(with).err()?.inner().to_string();
    let (_, expected) = said.split_once("expected ")?;
    Some(format!(", expected kind = {expected}"))
}

/// Writes `top` over `base`. A table that names another `kind` replaces the one below it.
fn overlay(base: &mut Value, top: Value) {
    match (base, top) {
        (Value::Object(base), Value::Object(top)) => {
            if let Some(kind) = top.get("kind")
                && base.get("kind") != Some(kind)
            {
                base.clear();
            }
            for (key, value) in top {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, top) => *base = top,
    }
}

/// The most parts of a key of `--set`.
const DEEPEST: usize = 16;

/// The key and the value of an entry of `--set`.
fn setting(entry: &str) -> Result<Setting> {
    let Some((path, text)) = entry.split_once('=') else {
        bail!("--set {entry}: expected KEY=VALUE, like train.steps=100")
    };
    let value = match toml::from_str::<Map<String, Value>>(&format!("x = {text}")) {
        Ok(mut table) if table.len() == 1 => table.remove("x").unwrap_or(Value::Null),
        Ok(_) => {
            bail!("--set {path}: expected one value, found several lines; give each its --set")
        }
        Err(_) => Value::String(text.to_owned()),
    };
    Ok((path.to_owned(), value))
}

/// Puts a value at a path of the recipe.
fn set(given: &mut Value, path: &str, value: Value, place: &str) -> Result<()> {
    if path.split('.').count() > DEEPEST {
        bail!("{place} KEY=VALUE: the key has more than {DEEPEST} parts; recipes have up to 4");
    }
    let (mut at, mut above) = (given, String::new());
    for key in path.split('.') {
        if key.is_empty() {
            bail!("{place} {path}: the key has an empty part");
        }
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let found = at.to_string();
        let Some(table) = at.as_object_mut() else {
            bail!(
                "{place} {path}: {above} is set to {found}, expected a table of fields, as one of \
                 its fields is set: leave {above} out"
            );
        };
        at = table.entry(key).or_insert(Value::Null);
        above = below(&above, key);
    }
    *at = value;
    Ok(())
}

/// The first number that is nan or infinite: JSON has none of them and takes them for null, which
/// TOML does not have.
fn not_finite(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Null => Some(path.to_owned()),
        Value::Object(map) => {
            map.iter().find_map(|(key, inner)| not_finite(inner, &below(path, key)))
        }
        Value::Array(list) => list.iter().find_map(|inner| not_finite(inner, path)),
        _ => None,
    }
}

/// The path of `key` in the table at `path`.
fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

struct Unknown {
    path: String,
    known: Vec<String>,
}

impl Unknown {
    fn nearest(&self) -> Option<&str> {
        let key = self.path.rsplit('.').next().unwrap_or("");
        nearest(key, self.known.iter().map(String::as_str))
    }
}

fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The first key of `given` that the resolved recipe does not have.
fn unknown_key(given: &Value, known: &Value, above: &str) -> Option<Unknown> {
    let (Value::Object(given), Value::Object(names)) = (given, known) else { return None };
    for (key, value) in given {
        let path = below(above, key);
        if path == "model.preset" {
            continue;
        }
        let Some(inner) = names.get(key) else {
            return Some(Unknown { path, known: names.keys().cloned().collect() });
        };
        if let Some(unknown) = unknown_key(value, inner, &path) {
            return Some(unknown);
        }
    }
    None
}

/// The line on which the key at `path` stands.
fn line_of(text: &str, table: &DeTable<'_>, path: &str) -> Option<usize> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == head)?;
    match (rest, value.get_ref()) {
        (None, _) => Some(text[..key.span().start].matches('\n').count() + 1),
        (Some(rest), DeValue::Table(inner)) => line_of(text, inner, rest),
        _ => None,
    }
}

/// The resolved recipe as TOML.
pub fn show(recipe: &Recipe) -> Result<String> {
    let mut value = serde_json::to_value(recipe)?;
    drop_nulls(&mut value);
    Ok(toml::to_string(&value)?)
}

/// TOML has no null: fields left to their defaults are left out.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, v| !v.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        format!("{:#}", parse(text, &sets).expect_err("must be refused"))
    }

    #[test]
    fn presets_and_sets() {
        let text = "[model]\npreset = \"cpu-1m-mor3\"\nvocab_size = 500\n\
                    [model.router]\nkind = \"expert_choice\"\nalpha = 0.2\n";
        let recipe =
            parse(text, &["train.steps=7".into(), "data.dir=some/where".into()]).expect("legal");
        assert_eq!(
            (recipe.train.steps, recipe.data.dir.as_str(), recipe.model.width),
            (7, "some/where", 128)
        );
        let model::RouterConfig::ExpertChoice(router) = &recipe.model.router else {
            panic!("router kept its kind")
        };
        assert!((router.alpha - 0.2).abs() < 1e-12);
        let again = parse(&show(&recipe).expect("writes"), &[]).expect("reads its own output");
        assert_eq!(again, recipe);
    }

    #[test]
    fn an_open_vocabulary_is_left_to_the_data() {
        assert_eq!(
            parse("[model]\npreset = \"cpu-1m-mor3\"\n", &[]).expect("legal").model.vocab_size,
            0
        );
        assert!(error("[model]\nwidth = 0\n", &[]).contains("model.width"));
        let relax = "relax = { kind = \"lora\", from_token = 900 }\n";
        parse(&format!("[model]\npreset = \"cpu-1m-mor3\"\n{relax}"), &[]).expect("legal");
        let known = format!("[model]\npreset = \"cpu-1m-mor3\"\nvocab_size = 900\n{relax}");
        assert!(error(&known, &[]).contains("model.relax.from_token is 900"));
    }

    /// Tables with a kind within such a table, too.
    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_whole_path() {
        for (router, path) in [
            ("kind = \"top_k\", memory = -3", "model.mlp.router.memory: invalid value"),
            ("kind = \"random\", each = \"batch\"", "model.mlp.router.each: unknown variant"),
            ("top_k = 2", "model.mlp.router: missing field `kind`"),
        ] {
            let mlp = format!("mlp = {{ kind = \"experts\", router = {{ {router} }} }}");
            let found = error(&format!("[model]\nvocab_size = 10\n{mlp}\n"), &[]);
            assert!(found.contains(path), "{found}");
        }
        let found =
            error("[model]\nvocab_size = 10\nmlp = { kind = \"experts\", count = -1 }\n", &[]);
        assert!(found.contains("model.mlp.count: invalid value"), "{found}");
    }

    #[test]
    fn another_kind_replaces_the_table() {
        let text = "[model]\npreset = \"cpu-1m-mor3\"\nvocab_size = 500\n\
                    router = { kind = \"token_choice\" }\n[schedule]\nkind = \"cosine\"\n";
        let recipe = parse(text, &[]).expect("legal");
        assert_eq!(recipe.model.router.kind(), "token_choice");
        assert!(matches!(recipe.schedule, train::ScheduleConfig::Cosine { .. }));
    }

    #[test]
    fn unknown_keys_name_line_and_neighbour() {
        let found = error("[model]\nvocab_size = 10\nwidht = 64\n", &[]);
        assert!(
            found.contains("line 3")
                && found.contains("`model.widht`")
                && found.contains("`width`"),
            "{found}"
        );
        let found = error(
            "[model]\nvocab_size = 10\n\
             [model.router]\nkind = \"token_choice\"\ncapacities = [1.0]\n",
            &[],
        );
        assert!(found.contains("line 5") && found.contains("capacities"), "{found}");
        let found = error("[model]\nvocab_size = 10\n", &["train.stepz=3"]);
        assert!(found.contains("--set") && found.contains("`steps`"), "{found}");
    }

    const OWN: &str = "[model]\nvocab_size = 10\nwidth = 64\nlayers = 4\nheads = 2\n\
                       kv_heads = 2\nhead_dim = 32\nffn = 128\nsharing = \"none\"\n";

    #[test]
    fn a_dense_model_is_one_word() {
        let recipe = parse(OWN, &["train.batch=4".into()]).expect("legal");
        assert_eq!((recipe.model.recursions, recipe.model.router.kind()), (1, "fixed"));
        let again = parse(&show(&recipe).expect("writes"), &[]).expect("reads its own output");
        assert_eq!(again, recipe);
        // Who asks for something else beside it is told all that does not fit, at once.
        for more in ["recursions = 3\n", "router = { kind = \"expert_choice\" }\n"] {
            let found = error(&format!("{OWN}{more}"), &[]);
            for needle in ["model.sharing", "\"none\"", "recursions = 1", "kind = \"fixed\""] {
                assert!(found.contains(needle), "{more}: {found}");
            }
        }
        let found = error("[model]\npreset = \"cpu-1m-mor3\"\n", &["model.sharing=none"]);
        assert!(found.contains("recursions = 3") && found.contains("expert_choice"), "{found}");
        let found = error(OWN, &["data.sequence_length=512"]);
        assert!(found.contains("give model.context = 512"), "{found}");
    }

    #[test]
    fn a_pass_takes_what_divides_the_batch() {
        for (batch, expected) in [(1, 1), (4, 4), (16, 16), (17, 1), (24, 12), (32, 16), (48, 16)] {
            let recipe = parse(OWN, &[format!("train.batch={batch}")]).expect("legal");
            assert_eq!(recipe.train.micro_batch, expected, "{batch}");
        }
        assert_eq!(parse(OWN, &[]).expect("legal").train.micro_batch, 16);
        let sets = ["train.batch=4".to_owned(), "train.micro_batch=2".to_owned()];
        assert_eq!(parse(OWN, &sets).expect("legal").train.micro_batch, 2);
        let found = error(OWN, &["train.batch=4", "train.micro_batch=3"]);
        assert!(found.contains("train.micro_batch is 3"), "{found}");
        assert!(error(OWN, &["train.batch=0"]).contains("train."));
    }

    #[test]
    fn nonsense_is_refused_with_its_field() {
        for (text, sets, needle) in [
            ("[model]\nvocab_size = 10\nheads = \"x\"\n", &[][..], "model.heads"),
            ("[model]\nvocab_size = 10\nheads = 3\nkv_heads = 2\n", &[], "model.kv_heads"),
            ("[model]\nvocab_size = 10\nhead_dim = 7\n", &[], "model.head_dim"),
            ("[model]\nvocab_size = 10\nrecursions = 0\n", &[], "model.recursions"),
            ("[model]\nvocab_size = 10\nrecursions = 1000000000\n", &[], "model.recursions"),
            ("[model]\nvocab_size = 10\nwidth = 0\n", &[], "model.width"),
            ("[model]\nvocab_size = 10\nwidth = -5\n", &[], "model.width"),
            ("[model]\nvocab_size = 10\nnorm_eps = nan\n", &[], "norm_eps"),
            ("[model]\nvocab_size = 10\nrope_theta = inf\n", &[], "rope_theta"),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\ncapacities = nan\n",
                &[],
                "model.router.capacities",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\nalpha = \"x\"\n",
                &[],
                "model.router.alpha: ",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\nz_weight = 0.1\ngating = \"x\"\n",
                &[],
                "model.router.gating: ",
            ),
            ("[model]\nvocab_size = 10\nsharing = \"spiral\"\n", &[], "model.sharing"),
            (
                "[model]\nvocab_size = 10\nsharing = \"sequence\"\nlayers = 9\n",
                &[],
                "model.sharing",
            ),
            ("[model]\nvocab_size = 10\n[model.router]\nkind = \"oracle\"\n", &[], "oracle"),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\ncapacities = [0.5, 0.6, 0.1]\n",
                &[],
                "capacities",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\ncapacities = [1.0, 0.5]\n",
                &[],
                "capacities",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\ncapacities = [1.0, 0.5, 0.0]\n",
                &[],
                "capacities",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 [model.router]\nkind = \"expert_choice\"\ncausal = \"auxiliary\"\n",
                &[],
                "causal",
            ),
            (
                "[model]\nvocab_size = 10\n\
                 kv = \"shared_update\"\nrouter = { kind = \"token_choice\" }\n",
                &[],
                "model.kv",
            ),
            ("[model]\npreset = \"cpu-9m\"\n", &[], "model.preset"),
            ("[model]\npreset = 3\n", &[], "model.preset"),
            ("[model]\nvocab_size = 10\n", &["train.steps=0"], "train.steps"),
            ("[model]\nvocab_size = 10\n", &["train.micro_batch=3"], "train.micro_batch"),
            ("[model]\nvocab_size = 10\n", &["train.steps"], "KEY=VALUE"),
            ("[model]\nvocab_size = 10\n", &["train..steps=3"], "empty part"),
            (
                "[model]\nvocab_size = 10\n",
                &["train=3", "train.steps=3"],
                "--set train.steps: train is set to 3, expected a table",
            ),
            (
                "[model]\nvocab_size = 10\n",
                &["data.sequence_length=100000"],
                "data.sequence_length",
            ),
            ("[model]\nvocab_size = 10\n", &["optimizer.beta1=1.0"], "optimizer.beta1"),
            (
                "[model]\nvocab_size = 10\n",
                &["optimizer.learning_rate=nan"],
                "optimizer.learning_rate",
            ),
            (
                "[model]\nvocab_size = 10\n",
                &["schedule.decay_fraction=2"],
                "schedule.decay_fraction",
            ),
            (
                "[model]\nvocab_size = 10\nkv = \"shared\"\n",
                &["train.recompute=true"],
                "train.recompute",
            ),
            ("[model\n", &[], "line 1"),
            ("model = 3\n", &[], "model"),
        ] {
            let found = error(text, sets);
            assert!(found.contains(needle), "{text:?} {sets:?}: {found}");
        }
    }
}
