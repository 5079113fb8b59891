//! Every option of a recipe changes what a run leaves behind, or is refused. The list of options
//! comes from the recipe itself, so one that is missing in the table below fails here.

#[path = "options/adapters.rs"]
mod adapters;
#[path = "options/device.rs"]
mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use checkpoint::RealDisk;
use data::build::{BuildOptions, build_documents};
use data::documents::Document;
use data::{Split, Tokenizer, TrainOptions};
use model::adapters::Relaxation;
use model::{ExpertRouterConfig, MlpConfig, ModelConfig, RotaryScaling, RouterConfig};
use serde_json::{Value, json};
use train::{Recipe, Resume, Run, ScheduleConfig, Stop};

/// What another value of an option does.
enum Effect {
    /// The run leaves other files or ends with another error.
    Changes,
    /// The recipe or the run is refused, with this in the message.
    Refused(&'static str),
    /// Results stay the same on purpose; the test of this name, in this file, fails where the
    /// option is ignored.
    Elsewhere(&'static str, &'static str),
}

use Effect::{Changes, Elsewhere, Refused};

/// An option, what must be set beside it to matter, another value, and what that does. A member of
/// a list is named in brackets. `@` begins the name of a folder.
type Line = (&'static str, &'static [(&'static str, &'static str)], &'static str, Effect);

const BLEND: (&str, &str) = ("model.router.gating", r#""blend""#);
const AUXILIARY: (&str, &str) = ("model.router.sampling", r#""aux_router""#);
const DICE: (&str, &str) = ("model.mlp", r#"{"kind":"experts","router":{"kind":"random"}}"#);
const FIXED: (&str, &str) = ("model.router", r#"{"kind":"fixed"}"#);
const BEYOND: (&str, &str) = ("model.rotary.scaling.original_context", "16");
const WINDOW: (&str, &str) = ("model.attention.window", "3");
const HEADS: (&str, &str) = ("model.kv_heads", "2");
const ROPE: (&str, &str) = ("model.attention.rope_dim", "4");
const LATENT: (&str, &str) = ("model.attention.kv_rank", "8");
const SHARED: (&str, &str) = ("model.mlp.shared", "8");
const LIMIT: (&str, &str) = ("model.mlp.limit", "0.5");
const GROUPS: (&str, &str) = ("model.mlp.router.groups", "4");
const PAIR: (&str, &str) = ("model.mlp.router.groups", "2");
const ROOM: (&str, &str) = ("model.mlp.router.capacity", "0.5");
const EIGHT: (&str, &str) = ("model.layers", "8");
const EVERY: (&str, &str) = ("checkpoint.every", "1");
const ONE: (&str, &str) = ("checkpoint.keep_last", "1");
const TEACHER: (&str, &str) = ("distill.checkpoint", r#""@other""#);
const START: (&str, &str) = ("start.checkpoint", r#""@other""#);
const HUGE: (&str, &str) = ("model.router.z_weight", "1e39");

const TABLE: &[Line] = &[
    ("model.vocab_size", &[], "77", Refused("vocab_size")),
    ("model.width", &[], "24", Changes),
    ("model.layers", &[], "8", Changes),
    ("model.heads", &[], "4", Changes),
    ("model.kv_heads", &[], "2", Changes),
    ("model.head_dim", &[], "4", Changes),
    ("model.ffn", &[], "32", Changes),
    ("model.context", &[], "8", Refused("context")),
    ("model.rope_theta", &[], "100.0", Changes),
    ("model.norm_eps", &[], "0.1", Changes),
    ("model.tie_embeddings", &[], "false", Changes),
    ("model.head_bias", &[], "true", Changes),
    ("model.init_std", &[], "0.05", Changes),
    ("model.attention.bias", &[], "true", Changes),
    ("model.attention.output_bias", &[], "true", Changes),
    ("model.attention.query_key_norm", &[], r#""head""#, Changes),
    ("model.attention.clip", &[], "0.05", Changes),
    ("model.attention.sinks", &[], "true", Changes),
    ("model.attention.window", &[], "3", Changes),
    ("model.attention.window_layers", &[WINDOW], "[0]", Changes),
    ("model.attention.scale", &[], "0.9", Changes),
    ("model.attention.soft_cap", &[], "1.0", Changes),
    ("model.attention.kv_rank", &[HEADS, ROPE, LATENT], "6", Changes),
    ("model.attention.query_rank", &[HEADS, ROPE, LATENT], "6", Changes),
    ("model.attention.rope_dim", &[HEADS, ROPE, LATENT], "2", Changes),
    ("model.attention.value_dim", &[HEADS, ROPE, LATENT], "6", Changes),
    ("model.attention.latent_scale", &[HEADS, ROPE, LATENT], "1.7", Changes),
    ("model.rotary.share", &[], "0.5", Changes),
    ("model.rotary.layers", &[], "[0]", Changes),
    ("model.rotary.scaling.kind", &[], r#""linear""#, Changes),
    ("model.rotary.scaling.kind", &[], r#""llama3""#, Changes),
    ("model.rotary.scaling.kind", &[], r#""yarn""#, Changes),
    ("model.rotary.scaling(linear).factor", &[], "4.0", Changes),
    ("model.rotary.scaling(llama3).factor", &[], "2.0", Changes),
    ("model.rotary.scaling(llama3).low", &[], "1.2", Changes),
    ("model.rotary.scaling(llama3).high", &[], "8.0", Changes),
    ("model.rotary.scaling(llama3).original_context", &[], "16", Changes),
    ("model.rotary.scaling(yarn).factor", &[], "8.0", Changes),
    ("model.rotary.scaling(yarn).beta_fast", &[], "4.0", Changes),
    ("model.rotary.scaling(yarn).beta_slow", &[], "16.0", Changes),
    ("model.rotary.scaling(yarn).original_context", &[], "16", Changes),
    ("model.rotary.scaling(yarn).attention_factor", &[], "2.0", Changes),
    ("model.rotary.scaling(yarn).mscale", &[], "2.0", Refused("mscale")),
    ("model.rotary.scaling(yarn).mscale_all_dim", &[], "2.0", Refused("mscale")),
    ("model.rotary.scaling(yarn).truncate", &[], "false", Changes),
    ("model.rotary.scaling.kind", &[], r#""dynamic""#, Refused("original_context")),
    ("model.rotary.scaling(dynamic).factor", &[BEYOND], "4.0", Changes),
    ("model.rotary.scaling(dynamic).original_context", &[BEYOND], "8", Changes),
    ("model.rotary.scaling.kind", &[], r#""longrope""#, Changes),
    ("model.rotary.scaling(longrope).short_factor", &[], "[1.0, 1.5, 2.0, 4.0]", Changes),
    ("model.rotary.scaling(longrope).long_factor", &[], "[1.0]", Refused("long_factor")),
    ("model.rotary.scaling(longrope).long_factor", &[BEYOND], "[1.0, 1.5, 2.0, 4.0]", Changes),
    ("model.rotary.scaling(longrope).original_context", &[], "64", Changes),
    ("model.rotary.scaling(longrope).long_context", &[], "8192", Changes),
    ("model.rotary.scaling(longrope).attention_factor", &[], "2.0", Changes),
    ("model.rotary.window_theta", &[WINDOW], "10.0", Changes),
    ("model.norms.kind", &[], r#""layer""#, Changes),
    ("model.norms.place", &[], r#""after""#, Changes),
    ("model.norms.plus_one", &[], "true", Changes),
    ("model.multipliers.embedding", &[], "2.0", Changes),
    ("model.multipliers.residual", &[], "0.5", Changes),
    ("model.multipliers.logits_divisor", &[], "2.0", Changes),
    ("model.multipliers.logit_cap", &[], "0.5", Changes),
    ("model.mlp.kind", &[], r#""unheard_of""#, Refused("unheard_of")),
    ("model.mlp(dense).activation", &[], r#""gelu""#, Changes),
    ("model.mlp(dense).bias", &[], "true", Changes),
    ("model.mlp.kind", &[], r#""experts""#, Changes),
    ("model.mlp(experts).count", &[], "4", Changes),
    ("model.mlp(experts).counts", &[], "[8, 4, 8]", Changes),
    ("model.mlp(experts).width", &[], "12", Changes),
    ("model.mlp(experts).latent", &[], "12", Changes),
    ("model.mlp(experts).modulated", &[], "true", Changes),
    ("model.mlp(experts).shortcut", PAIRS, "true", Changes),
    ("model.mlp(experts).shortcut", &[], "true", Refused("shortcut")),
    ("model.mlp(experts).identity_experts", HELD, "3", Changes),
    ("model.mlp(experts).zero_experts", HELD, "1", Changes),
    ("model.mlp(experts).constant_experts", HELD, "1", Changes),
    ("model.mlp(experts).shared", &[], "8", Changes),
    ("model.mlp(experts).shared_gate", &[SHARED], "true", Changes),
    ("model.mlp(experts).shared_mix", &[SHARED], "true", Changes),
    ("model.mlp(experts).dense_first", &[], "1", Changes),
    ("model.mlp(experts).every", &[], "2", Changes),
    ("model.mlp(experts).dense_layers", &[], "[1]", Changes),
    ("model.mlp(experts).biases", &[], "true", Changes),
    ("model.mlp(experts).dense_biases", &[SHARED], "true", Changes),
    ("model.mlp(experts).limit", &[], "0.5", Changes),
    ("model.mlp(experts).alpha", &[LIMIT], "1.0", Changes),
    ("model.mlp(experts).own_routers", &[], "true", Changes),
    ("model.mlp.router.kind", &[], r#""hash""#, Changes),
    ("model.mlp.router(top_k).top_k", &[], "3", Changes),
    ("model.mlp.router(top_k).network", &[], r#""mlp""#, Changes),
    ("model.mlp.router(top_k).memory", &[], "4", Changes),
    ("model.mlp.router(top_k).logit_bias", &[], "true", Changes),
    ("model.mlp.router(top_k).soft_cap", &[], "0.5", Changes),
    ("model.mlp.router(top_k).function", &[], r#""sigmoid""#, Changes),
    ("model.mlp.router(top_k).normalize", &[], "false", Changes),
    ("model.mlp.router(top_k).least", &[], "0.9", Changes),
    ("model.mlp.router(top_k).scale", &[], "2.0", Changes),
    ("model.mlp.router(top_k).groups", &[], "4", Changes),
    ("model.mlp.router(top_k).equal_groups", &[PAIR], "true", Changes),
    ("model.mlp.router(top_k).top_groups", &[GROUPS], "2", Changes),
    ("model.mlp.router(top_k).group_score", &[GROUPS], r#""best""#, Changes),
    ("model.mlp.router(top_k).warmup_steps", &[], "3", Changes),
    ("model.mlp.router(top_k).capacity", &[], "0.5", Changes),
    ("model.mlp.router(top_k).priority", &[ROOM], r#""score""#, Changes),
    ("model.mlp.router(top_k).balance", &[], r#""loss_free""#, Changes),
    ("model.mlp.router(top_k).balance_weight", &[], "0.5", Changes),
    ("model.mlp.router(top_k).budget", HELD, "0.5", Changes),
    ("model.mlp.router(top_k).group_weight", &[GROUPS], "0.5", Changes),
    ("model.mlp.router(top_k).pooled_weight", &[], "0.5", Changes),
    ("model.mlp.router(top_k).z_weight", &[], "0.5", Changes),
    ("model.mlp.router(top_p).p", &[], "0.8", Changes),
    ("model.mlp.router(top_p).limit", &[], "2", Changes),
    ("model.mlp.router(top_p).network", &[], r#""mlp""#, Changes),
    ("model.mlp.router(top_p).balance_weight", &[], "0.5", Changes),
    ("model.mlp.router(top_p).entropy_weight", &[], "0.5", Changes),
    ("model.mlp.router(top_p).z_weight", &[], "0.5", Changes),
    ("model.mlp.router(expert_choice).capacity", &[], "3.0", Changes),
    ("model.mlp.router(expert_choice).network", &[], r#""mlp""#, Changes),
    ("model.mlp.router(expert_choice).running_decay", &[], "0.5", Changes),
    ("model.mlp.router(expert_choice).z_weight", &[], "0.5", Changes),
    ("model.mlp.router(random).top_k", &[], "1", Changes),
    ("model.mlp.router(random).each", &[], r#""sequence""#, Changes),
    ("model.mlp.router(sparse_mixer).jitter", &[], "0.5", Changes),
    ("model.mlp.router(sparse_mixer).pooled_weight", &[], "0.5", Changes),
    ("model.mlp.router(hash).top_k", &[], "1", Changes),
    ("model.mlp.router(hash).of", &[], r#""token_and_position""#, Changes),
    ("model.sharing", &[EIGHT, FIXED], r#""middle_sequence""#, Changes),
    ("model.recursions", &[EIGHT], "2", Changes),
    ("model.share_norms", &[], "false", Changes),
    ("model.kv", &[], r#""shared""#, Changes),
    ("model.router.kind", &[], r#""random""#, Changes),
    ("model.router.kind", &[], r#""token_choice""#, Changes),
    ("model.router.kind", &[], r#""fixed""#, Changes),
    ("model.router(expert_choice).network", &[], r#""mlp""#, Changes),
    ("model.router(expert_choice).function", &[], r#""tanh""#, Changes),
    ("model.router(expert_choice).alpha", &[], "0.3", Changes),
    ("model.router(expert_choice).temperature", &[], "3.0", Changes),
    ("model.router(expert_choice).gating", &[], r#""blend""#, Changes),
    ("model.router(expert_choice).gate_release_steps", &[BLEND], "5", Changes),
    ("model.router(expert_choice).capacities", &[], "[1.0, 0.5, 0.25]", Changes),
    ("model.router(expert_choice).capacity_warmup_steps", &[], "3", Changes),
    ("model.router(expert_choice).sampling", &[], r#""none""#, Changes),
    ("model.router(expert_choice).sampling_weight", &[], "0.5", Changes),
    ("model.router(expert_choice).z_weight", &[], "0.5", Changes),
    ("model.router(expert_choice).causal", &[], r#""half""#, Changes),
    ("model.router(expert_choice).train_causal_from", RUNNING, "1", Changes),
    ("model.router(expert_choice).running_decay", &[], "0.5", Changes),
    ("model.router(token_choice).network", &[], r#""mlp""#, Changes),
    ("model.router(token_choice).function", &[], r#""sigmoid""#, Changes),
    ("model.router(token_choice).alpha", &[], "0.5", Changes),
    ("model.router(token_choice).temperature", &[], "3.0", Changes),
    ("model.router(token_choice).balance", &[], r#""loss_free""#, Changes),
    ("model.router(token_choice).balance_weight", &[], "0.5", Changes),
    ("model.router(token_choice).balance_warmup_steps", &[], "2", Changes),
    ("model.router(token_choice).z_weight", &[], "0.5", Changes),
    ("model.router(token_choice).gate_on", &[HALF], r#""every_pass""#, Changes),
    ("model.router(random).alpha", &[], "0.5", Changes),
    ("model.router(random).capacities", &[], "[1.0, 0.5, 0.25]", Changes),
    ("start.checkpoint", &[], r#""@other""#, Changes),
    ("start.fingerprint", &[START], r#""0123""#, Refused("fingerprint")),
    ("data.dir", &[], r#""@more""#, Changes),
    ("data.sequence_length", &[], "12", Changes),
    ("data.document_mask", &[], "false", Changes),
    ("train.steps", &[], "4", Changes),
    ("train.batch", &[], "8", Changes),
    ("train.micro_batch", &[], "3", Refused("micro_batch")),
    ("train.shards", &[("train.micro_batch", "1")], "2", Changes),
    ("train.shards", &[], "2", Refused("passes of a step")),
    ("train.seed", &[], "2", Changes),
    ("train.recompute", &[], "true", Elsewhere("forecast.rs", "runs_take_what_the_forecast_says")),
    ("train.consistency_weight", &[DICE], "5.0", Changes),
    ("train.consistency_weight", &[], "5.0", Refused("throws dice")),
    ("train.non_finite", &[HUGE], r#""skip""#, Changes),
    ("train.freeze", &[], r#"["embed"]"#, Changes),
    ("train.frozen_format", &[("train.freeze", r#"["layers.*"]"#)], r#""int8""#, Changes),
    ("train.frozen_format", &[], r#""int8""#, Refused("train.freeze")),
    ("optimizer.learning_rate", &[], "0.02", Changes),
    ("optimizer.beta1", &[], "0.5", Changes),
    ("optimizer.beta2", &[], "0.5", Changes),
    ("optimizer.eps", &[], "0.01", Changes),
    ("optimizer.weight_decay", &[], "0.0", Changes),
    ("optimizer.clip_norm", &[], "0.01", Changes),
    ("optimizer.auxiliary_router_scale", &[AUXILIARY], "1.0", Changes),
    ("schedule.kind", &[], r#""constant""#, Changes),
    ("schedule.kind", &[], r#""cosine""#, Changes),
    ("schedule(trapezoid).warmup_steps", &[], "2", Changes),
    ("schedule(trapezoid).decay_fraction", &[], "1.0", Changes),
    ("schedule(cosine).warmup_steps", &[], "2", Changes),
    ("schedule(cosine).floor", &[], "0.9", Changes),
    ("schedule(constant).warmup_steps", &[], "2", Changes),
    ("distill.checkpoint", &[], r#""@other""#, Changes),
    ("distill.fingerprint", &[TEACHER], r#""0123""#, Refused("fingerprint")),
    ("distill.weight", &[TEACHER], "0.9", Changes),
    ("distill.temperature", &[TEACHER], "1.0", Changes),
    ("checkpoint.every", &[], "0", Changes),
    ("checkpoint.keep_last", &[EVERY], "1", Changes),
    ("checkpoint.keep_every", &[EVERY, ONE], "2", Changes),
    ("log.validate_every", &[], "1", Changes),
    ("log.validate_windows", &[], "2", Changes),
    ("log.calibrate_windows", &[], "1", Changes),
    ("log.trace_every", &[], "2", Changes),
];

/// Identity experts, and the bias that holds how many of a row's experts compute.
const HELD: &[(&str, &str)] = &[
    ("model.mlp.identity_experts", "2"),
    ("model.mlp.router.balance", r#""budget""#),
    ("model.mlp.router.budget", "1.5"),
];
/// Layers in pairs, of which the second has experts.
const PAIRS: &[(&str, &str)] =
    &[("model.layers", "6"), ("model.sharing", r#""cycle""#), ("model.mlp.every", "2")];
const HALF: (&str, &str) = ("model.router.alpha", "0.5");
const RUNNING: &[(&str, &str)] = &[("model.router.causal", r#""running""#)];

/// Every line.
fn table() -> impl Iterator<Item = &'static Line> {
    TABLE.iter().chain(adapters::TABLE)
}

/// The recipe that all runs begin with.
fn base(place: &Path) -> Value {
    json!({
        "model": {
            "width": 16, "layers": 5, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 24,
            "context": 32, "recursions": 3, "init_std": 0.2,
        },
        "data": { "dir": place.join("data"), "sequence_length": 16 },
        "train": { "steps": 3, "batch": 4, "micro_batch": 4 },
        "optimizer": { "learning_rate": 0.01 },
        "schedule": { "kind": "trapezoid", "warmup_steps": 0, "decay_fraction": 0.5 },
        "checkpoint": { "every": 2 },
        "log": { "validate_every": 2, "validate_windows": 6, "calibrate_windows": 3 },
    })
}

fn document(i: u64) -> String {
    let words = ["router", "token", "depth", "layer", "weight", "model", "opens", "reads"];
    (0..12u64).map(|k| words[((i * 31 + k * k * 7 + k) % 8) as usize].to_owned() + " ").collect()
}

/// Two data folders of one tokenizer, and a run to start and to learn from.
fn prepare(place: &Path) {
    let options = TrainOptions::new(300);
    let tokenizer = Tokenizer::train((0..50).map(document), &options).expect("learns");
    for (name, first) in [("data", 0), ("more", 1000)] {
        let documents = (first..first + 120).map(|i| {
            let split = if i % 4 == 0 { Split::Validation } else { Split::Train };
            let source = format!("source {}", i % 3);
            (Document { text: document(i), source, license: None }, split)
        });
        build_documents(documents, &tokenizer, &place.join(name), &BuildOptions::default())
            .expect("builds");
    }
    let mut recipe = base(place);
    recipe["train"]["seed"] = 11.into();
    run(&recipe, &place.join("other")).expect("a run to start from");
}

fn run(recipe: &Value, dir: &Path) -> Result<(), String> {
    let recipe: Recipe = serde_json::from_value(recipe.clone()).map_err(|e| e.to_string())?;
    let opened = Run::open(&recipe, dir, Resume::Never, 0.0);
    let mut run = opened.map_err(|error| error.to_string())?;
    run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).map_err(|error| error.to_string())?;
    Ok(())
}

/// What a run leaves behind but for copies of its recipe: its log, the names of its files, and the
/// bytes of weights, routing and state.
fn outcome(recipe: &Value, dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    if let Err(error) = run(recipe, dir) {
        found.insert("error".into(), error.into_bytes());
    }
    let mut folders = vec![PathBuf::from(dir)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten();
        for path in entries.map(|entry| entry.expect("lists").path()) {
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let keeps = ["log.jsonl", "weights.safetensors", "routing.json", "state.json"];
            if path.is_dir() {
                folders.push(path);
            } else if keeps.iter().any(|keep| name.ends_with(keep)) {
                found.insert(name, std::fs::read(&path).expect("reads"));
            } else if !name.contains("events") {
                found.insert(name, Vec::new());
            }
        }
    }
    found
}

/// The members of the lists in a recipe, each with its defaults.
fn lists() -> BTreeMap<&'static str, Vec<Value>> {
    let schedules = [
        ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: 0.2 },
        ScheduleConfig::Cosine { warmup_steps: 0, floor: 0.1 },
        ScheduleConfig::Constant { warmup_steps: 0 },
    ];
    // A new kind does not compile here until it is in the list above.
    for schedule in &schedules {
        match schedule {
            ScheduleConfig::Trapezoid { .. }
            | ScheduleConfig::Cosine { .. }
            | ScheduleConfig::Constant { .. } => {}
        }
    }
    BTreeMap::from([
        ("model.router", RouterConfig::all().iter().map(|x| json!(x)).collect()),
        ("model.relax", Relaxation::all().iter().map(|x| json!(x)).collect()),
        ("model.mlp", mlps()),
        ("model.rotary.scaling", RotaryScaling::all().iter().map(|x| json!(x)).collect()),
        ("model.mlp.router", ExpertRouterConfig::all().iter().map(|x| json!(x)).collect()),
        ("schedule", schedules.iter().map(|x| json!(x)).collect()),
    ])
}

/// Every MLP with all its fields, also those that are not written at their defaults.
fn mlps() -> Vec<Value> {
    let whole = |mlp: MlpConfig| {
        let config = ModelConfig { mlp, ..ModelConfig::default() };
        train::whole_config(&config)["mlp"].clone()
    };
    MlpConfig::all().into_iter().map(whole).collect()
}

/// All options of a recipe, as the table names them.
fn options() -> BTreeSet<String> {
    fn collect(value: &Value, path: &str, all: &mut BTreeSet<String>) {
        let lists = lists();
        if let Some(members) = lists.get(path) {
            all.insert(format!("{path}.kind"));
            for member in members {
                let kind = member["kind"].as_str().expect("a name");
                let fields = member.as_object().expect("a table");
                for (field, value) in fields.iter().filter(|(field, _)| *field != "kind") {
                    let inner = format!("{path}.{field}");
                    match lists.contains_key(inner.as_str()) {
                        true => collect(value, &inner, all),
                        false => drop(all.insert(format!("{path}({kind}).{field}"))),
                    }
                }
            }
            return;
        }
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(value, &path, all);
            }),
            _ => drop(all.insert(path.to_owned())),
        }
    }
    let mut all = BTreeSet::new();
    let mut recipe = json!(Recipe::default());
    recipe["model"] = train::whole_config(&ModelConfig::default());
    collect(&recipe, "", &mut all);
    all
}

fn set(recipe: &mut Value, path: &str, value: Value) {
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let table = table.split('.').fold(recipe, |at, key| &mut at[key]);
    table[key] = value;
}

/// A value of the table, with folders in their place.
fn read(text: &str, place: &Path) -> Value {
    let value: Value = serde_json::from_str(text).expect(text);
    match value.as_str().and_then(|text| text.strip_prefix('@')) {
        Some(folder) => json!(place.join(folder)),
        None => value,
    }
}

/// The recipe without and with another value of the option of `line`.
fn pair(line: &Line, place: &Path) -> [Value; 2] {
    let (option, beside, value, _) = line;
    let mut recipe = base(place);
    let mut path = (*option).to_owned();
    if option.starts_with("model.mlp.router") {
        set_list(&mut recipe, "model.mlp", json!({ "kind": "experts" }));
        set_list(&mut recipe, "model.mlp.router", json!(ExpertRouterConfig::default()));
    }
    if let Some((list, rest)) = option.split_once('(') {
        let (kind, field) = rest.split_once(").").expect("a member");
        let members = lists();
        let member = members[list].iter().find(|member| member["kind"] == kind).expect(kind);
        set_list(&mut recipe, list, member.clone());
        path = format!("{list}.{field}");
    } else if option.starts_with("model.router") {
        set_list(&mut recipe, "model.router", json!(RouterConfig::default()));
    }
    for (other, value) in *beside {
        if let Some(list) = lists().keys().find(|list| *list == other) {
            set_list(&mut recipe, list, read(value, place));
        } else if other.starts_with("model.router") && recipe["model"]["router"].is_null() {
            set_list(&mut recipe, "model.router", json!(RouterConfig::default()));
            set(&mut recipe, other, read(value, place));
        } else {
            set(&mut recipe, other, read(value, place));
        }
    }
    let mut changed = recipe.clone();
    match path.strip_suffix(".kind").filter(|list| lists().contains_key(*list)) {
        Some(list) => {
            let kind = read(value, place);
            let members = lists();
            let known = members[list].iter().find(|member| member["kind"] == kind);
            set_list(&mut changed, list, known.cloned().unwrap_or_else(|| json!({ "kind": kind })));
        }
        None => set(&mut changed, &path, read(value, place)),
    }
    [recipe, changed]
}

fn set_list(recipe: &mut Value, list: &str, value: Value) {
    match list.contains('.') {
        true => set(recipe, list, value),
        false => recipe[list] = value,
    }
}

#[test]
fn every_option_of_a_recipe_is_in_the_table() {
    let listed: BTreeSet<String> = table().map(|line| line.0.to_owned()).collect();
    let missing: Vec<_> = options().difference(&listed).cloned().collect();
    assert!(missing.is_empty(), "no line in the table says what these do: {missing:#?}");
    let unknown: Vec<_> = listed.difference(&options()).cloned().collect();
    assert!(unknown.is_empty(), "these are no options of a recipe: {unknown:#?}");
}

#[test]
fn every_option_of_a_recipe_does_something_or_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = dir.path();
    prepare(place);
    let mut wrong = Vec::new();
    let mut known: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for (number, line) in table().enumerate() {
        let (option, _, value, effect) = line;
        let [plain, changed] = pair(line, place);
        if let Elsewhere(file, test) = effect {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
            let source = std::fs::read_to_string(source).expect("a test file");
            assert!(source.contains(&format!("fn {test}(")), "{option}: no {test} in {file}");
            continue;
        }
        let before = known
            .entry(plain.to_string())
            .or_insert_with(|| outcome(&plain, &place.join(format!("{number}-plain"))));
        let error = |found: &BTreeMap<String, Vec<u8>>| {
            found.get("error").map(|text| String::from_utf8_lossy(text).into_owned())
        };
        if let Some(error) = error(before).filter(|_| *option != "train.non_finite") {
            wrong.push(format!("{option}: the run beside it fails: {error}"));
        }
        let after = outcome(&changed, &place.join(format!("{number}-changed")));
        match (effect, error(&after)) {
            (Refused(needle), Some(error)) if error.contains(needle) => {}
            (Refused(needle), found) => {
                wrong.push(format!("{option} = {value}: no refusal with {needle:?}: {found:?}"));
            }
            (_, Some(error)) => wrong.push(format!("{option} = {value}: fails: {error}")),
            (_, None) if after == *before => {
                wrong.push(format!("{option} = {value}: changes nothing"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
