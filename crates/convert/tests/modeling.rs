//! Our own exported form as transformers reads it. The code in Python runs elsewhere
//! (bench/reference/modeling.py); here stands what the folder must hold for it, and that it comes
//! back.

use std::fs;
use std::path::Path;

use checkpoint::RealDisk;
use convert::{Card, export_own, export_with_code, import};
use model::rng::{Purpose, Stream};
use model::table::{buffers, specs};
use model::{Address, Causality, ModelConfig, RouterConfig, RouterState, Rows, Rule};
use serde_json::{Map, Value, json};
use testkit::{
    How, MODES, Out, SHARINGS, VOCAB, adapters, at_once, by_context, cached, causal, forms, fresh,
    ids, mlps, pairwise, routers, tiny, uneven_uses,
};
use train::Stored;

const PROMPT: usize = 12;
const NEW: usize = 10;
/// Combinations of options that are drawn, before those that bring no new pair are left out.
const DRAWN: u64 = 4000;

/// Models that pair routers, forms, MLPs, adapters, layouts and caches with one another.
fn family() -> Vec<ModelConfig> {
    let (routers, forms, mlps) = (routers(), forms(), mlps());
    let relaxed = adapters(&mlps[0]).len();
    let sizes =
        [routers.len(), forms.len(), mlps.len(), relaxed, MODES.len(), SHARINGS.len(), 2, 2];
    let config = |choice: &[usize]| {
        let mlp = mlps[choice[2]].clone();
        let relax = adapters(&mlp)[choice[3]].clone();
        let plain = tiny(routers[choice[0]].clone(), MODES[choice[4]], SHARINGS[choice[5]]);
        let (share_norms, tie_embeddings) = (choice[6] == 0, choice[7] == 0);
        let config = ModelConfig { mlp, relax, share_norms, tie_embeddings, ..plain };
        forms[choice[1]].clone().of(config)
    };
    let mut drawn = Vec::new();
    for place in 0..DRAWN {
        let mut dice = Stream::at(1, Purpose::Shuffle, 0, place);
        drawn.push(sizes.map(|size| (dice.uniform() * size as f64) as usize).to_vec());
    }
    drawn.retain(|choice| config(choice).check().is_ok());
    let mut all: Vec<_> = pairwise(&drawn).iter().map(|choice| config(choice)).collect();
    all.extend(by_context(&tiny(routers[0].clone(), MODES[0], SHARINGS[1])));
    all
}

/// Biases that matter on the choice of depths and of experts.
fn state(config: &ModelConfig) -> RouterState {
    let mut state = RouterState::default();
    for buffer in buffers(config) {
        if buffer.name.ends_with("bias") {
            let bias = (0..buffer.length).map(|i| 0.05 - 0.03 * i as f32);
            state = state.with(&buffer.name, &bias.collect::<Vec<_>>());
        }
        if buffer.name.ends_with("thresholds") {
            let thresholds = (0..buffer.length).map(|i| 0.1 + 0.03 * (i % 4) as f32);
            state = state.with(&buffer.name, &thresholds.collect::<Vec<_>>());
        }
    }
    state
}

/// A word for each id.
fn tokenizer() -> Vec<u8> {
    let words: Map<String, Value> = (0..VOCAB).map(|id| (format!("w{id}"), json!(id))).collect();
    let model = json!({ "type": "WordLevel", "vocab": words, "unk_token": "w0" });
    let split = json!({ "type": "WhitespaceSplit" });
    json!({ "version": "1.0", "pre_tokenizer": split, "model": model }).to_string().into_bytes()
}

/// A model with the rule that its router needs.
fn stored(config: &ModelConfig) -> Stored {
    let model = fresh(config, 5);
    uneven_uses(&model);
    let rule = match config.router.settings().causality() {
        Causality::Always => None,
        _ => Some(causal(&model, &ids(1, 24))),
    };
    let state = state(config);
    Stored { rule, state, tokenizer: Some(tokenizer()), ..Stored::of(model.into()) }
}

fn how(stored: &Stored) -> How {
    let rule = stored.rule.clone().unwrap_or(Rule::NonCausal);
    let address = Address { seed: 0, step: u64::MAX, place: 0 };
    How { state: stored.state.clone(), address, ..How::by(&rule) }
}

fn run(stored: &Stored, ids: &[u32]) -> Out {
    at_once(&stored.model, ids, &Rows::batch(1, ids.len()), &how(stored))
}

/// What the code in Python must give for the folder: logits, depths, and greedy text.
fn expected(stored: &Stored) -> Value {
    let mut tokens = ids(2, PROMPT);
    let whole = run(stored, &tokens);
    for _ in 0..NEW {
        let out = cached(&stored.model, &tokens, 5, &how(stored));
        let last = out.row(tokens.len() - 1);
        let best = (0..VOCAB).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a)));
        tokens.push(best.expect("a token") as u32);
    }
    json!({
        "prompt": tokens[..PROMPT],
        "logits": whole.logits,
        "depths": whole.depth,
        "greedy": tokens[PROMPT..],
    })
}

/// With `LATHE_WRITE_MODELS`, a folder, the models stay there with what they must give.
#[test]
fn folders_hold_what_transformers_needs_and_come_back() {
    let place = tempfile::TempDir::new().expect("a folder");
    let kept = std::env::var_os("LATHE_WRITE_MODELS");
    let root = kept.as_ref().map_or(place.path(), Path::new);
    let family = family();
    assert!(family.len() > 40, "{}", family.len());
    for (i, config) in family.iter().enumerate() {
        let stored = stored(config);
        let folder = root.join(format!("{i:03}"));
        let card = Card { name: "a name".into(), results: vec![("bits per byte".into(), 1.5)] };
        let written = export_with_code(&stored, &folder, &card, &RealDisk);
        written.unwrap_or_else(|error| panic!("{config:?}: {error}"));
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
        let json = |name: &str| serde_json::from_str::<Value>(&read(name)).expect(name);

        let given = json("config.json");
        let auto = &given["auto_map"]["AutoModelForCausalLM"];
        assert_eq!(*auto, json!("modeling_lathe.LatheForCausalLM"));
        assert!(read("modeling_lathe.py").contains("class LatheForCausalLM"));
        let table = specs(config, &config.check().expect("legal"));
        for spec in &table {
            let shape = json!([spec.shape.0, spec.shape.1]);
            assert_eq!(given["parameters"][&spec.name], shape, "{}", spec.name);
        }
        assert_eq!(given["parameters"].as_object().map(serde_json::Map::len), Some(table.len()));
        assert_eq!(json("tokenizer_config.json")["model_max_length"], config.context);
        json("generation_config.json");
        assert!(read("README.md").contains("bits per byte"), "the card has the results");

        let back = place.path().join(format!("back-{i}"));
        import(&folder, &back, &RealDisk).unwrap_or_else(|error| panic!("{config:?}: {error}"));
        let back = train::load_model(&back).expect("opens");
        let tokens = ids(2, PROMPT);
        assert_eq!(run(&back, &tokens), run(&stored, &tokens), "{config:?}");
        if kept.is_some() {
            let text = expected(&stored).to_string();
            fs::write(folder.join("expected.json"), text).expect("writes");
        }
    }
}

/// A router that decides by thresholds cannot run without them: no code goes with it, and who asks
/// for code is told.
#[test]
fn a_model_without_its_rule_has_no_code() {
    let place = tempfile::TempDir::new().expect("a folder");
    let router = RouterConfig::ExpertChoice(Default::default());
    let mut stored = stored(&tiny(router, MODES[0], SHARINGS[1]));
    stored.rule = None;
    let (card, asked) = (Card::default(), place.path().join("asked"));
    let error = export_with_code(&stored, &asked, &card, &RealDisk).expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("causal rule") && text.contains("--format lathe"), "{text}");
    assert!(!asked.exists(), "nothing was written");
    export_own(&stored, &place.path().join("own"), &card, &RealDisk).expect("writes");
    assert!(!place.path().join("own/modeling_lathe.py").exists());
}
