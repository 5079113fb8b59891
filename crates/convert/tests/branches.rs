//! Dense models of one shape become one with experts: which numbers stand where, what routers are
//! made of, and that equal experts change nothing.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::RealDisk;
use common::{fixture, ids, logits, stored, tiny};
use convert::{BranchPlan, BranchReport, ConvertError, HfWeightType, export_hugging_face};
use convert::{import, join_branches};
use data::Tokenizer;
use model::expert_routers::top_k;
use model::mlp::experts;
use model::{ExpertRouterConfig, MlpConfig, ModelConfig, Rule, Sharing};
use testkit::close;
use train::{Stored, load_model};

/// A folder with dense checkpoints: `base`, `same` (the base again) and others, and the plan.
struct Branches {
    folder: tempfile::TempDir,
}

impl Branches {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Self { folder };
        import(&fixture("tied"), &made.at("base"), &RealDisk).expect("imports");
        made
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A model of the base's shape with other numbers.
    fn other(&self, name: &str, seed: u64) {
        let base = load_model(&self.at("base")).expect("opens");
        stored(&self.at(name), base.model.config(), seed);
    }

    /// Writes the plan; `@` stands for the folder.
    fn plan(&self, text: &str) -> Result<BranchPlan, ConvertError> {
        let text = text.replace('@', &self.folder.path().display().to_string());
        let path = self.at("moe.yml");
        fs::write(&path, text).expect("writes");
        BranchPlan::load(&path)
    }

    fn join(&self, text: &str, out: &str) -> Result<(Stored, BranchReport), ConvertError> {
        let plan = self.plan(text)?;
        let open = |path: &Path| load_model(path).map_err(ConvertError::from);
        let (path, report) = join_branches(&plan, open, 7, &self.at(out), &RealDisk)?;
        Ok((load_model(&path).expect("opens"), report))
    }
}

fn weight(of: &Stored, name: &str) -> Vec<f32> {
    let mut weights = of.model.weights().iter();
    weights.find(|(spec, _)| spec.name == name).unwrap_or_else(|| panic!("no {name}")).1.read()
}

const TWO: &str = "base_model: @/base\ngate_mode: hidden # the default\nexperts_per_token: 1\n\
                   experts:\n  - source_model: @/base\n    positive_prompts:\n      - \"the sea\"\n\
                   \x20     - 'a ship'\n  - source_model: @/other\n    positive_prompts: [code, \
                   \"fn main\"]\n    negative_prompts:\n    - the sea\n";

#[test]
fn equal_experts_are_the_dense_model() {
    let all = Branches::new();
    let base = load_model(&all.at("base")).expect("opens");
    let text = "base_model: @/base\ngate_mode: hidden\nexperts:\n- source_model: @/base\n  \
                positive_prompts: [one]\n- source_model: @/base\n  positive_prompts: [two]\n- \
                source_model: @/base\n  positive_prompts: [three]\n";
    let (made, report) = all.join(text, "moe").expect("joins");
    let expected = logits(&base.model, &Rule::NonCausal, &ids());
    let found = logits(&made.model, &Rule::NonCausal, &ids());
    close(&found, &expected, 1e-4, "three times the base");
    assert_eq!(report.experts, vec![all.at("base"); 3]);
    // It goes out as a class that others know.
    export_hugging_face(&made, &all.at("hf"), HfWeightType::F32, &RealDisk).expect("exports");
    let text = fs::read_to_string(all.at("hf/config.json")).expect("there");
    assert!(text.contains("MixtralForCausalLM"), "{text}");
}

#[test]
fn each_number_comes_from_its_model() {
    let all = Branches::new();
    all.other("other", 3);
    let (made, report) = all.join(TWO, "moe").expect("joins");
    let (base, other) =
        ["base", "other"].map(|name| load_model(&all.at(name)).expect("opens")).into();
    let MlpConfig::Experts(mlp) = &made.model.config().mlp else { panic!("experts") };
    let router = top_k::Config { top_k: 1, ..top_k::Config::default() };
    let router = ExpertRouterConfig::TopK(router);
    assert_eq!(*mlp, experts::Config { count: 2, router, ..experts::Config::default() });
    for layer in 0..base.model.config().layers {
        for part in ["gate_up", "down"] {
            let own = format!("layers.{layer}.{part}");
            let bank = weight(&made, &format!("layers.{layer}.experts_{part}"));
            let expected = [weight(&base, &own), weight(&other, &own)].concat();
            assert!(bank == expected, "{own}");
        }
        for part in ["query", "key_value", "attention_norm.0", "ffn_norm.0"] {
            let name = format!("layers.{layer}.{part}");
            assert_eq!(weight(&made, &name), weight(&base, &name), "{name}");
        }
    }
    assert_eq!(weight(&made, "embed"), weight(&base, "embed"));
    assert_eq!(made.tokenizer, base.tokenizer);
    assert_eq!(report.likeness.len(), base.model.config().layers);
}

/// Rows of routers once more, from the streams of the base: what the norms of the first layer are
/// given is the embedding of the last token.
#[test]
fn rows_of_routers_are_what_the_prompts_leave() {
    let all = Branches::new();
    all.other("other", 3);
    let base = load_model(&all.at("base")).expect("opens");
    let tokenizer = base.tokenizer.clone().expect("a tokenizer");
    let tokenizer =
        Tokenizer::from_json(std::str::from_utf8(&tokenizer).expect("text")).expect("reads");
    let (embed, d) = (weight(&base, "embed"), base.model.config().width);
    let begin: Vec<u32> = base.text.as_ref().and_then(|text| text.bos).into_iter().collect();
    let tokens = |text: &str| [begin.clone(), tokenizer.encode(text).expect("tokens")].concat();
    let row = |id: u32| -> Vec<f64> {
        embed[id as usize * d..][..d].iter().map(|x| f64::from(*x)).collect()
    };
    let unit = |mut x: Vec<f64>| {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= length);
        x
    };
    let sum = |rows: Vec<Vec<f64>>| {
        rows.into_iter().reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).expect("rows")
    };
    let less = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
    let half = |x: Vec<f64>| x.into_iter().map(|x| x / 2.0).collect::<Vec<f64>>();
    let last = |text: &str| row(*tokens(text).last().expect("a token"));
    let (made, _) = all.join(TWO, "hidden").expect("joins");
    let first = unit(half(sum(vec![last("the sea"), last("a ship")])));
    let code = half(sum(vec![last("code"), last("fn main")]));
    let second = unit(less(code, last("the sea")));
    let expected: Vec<f32> = [first, second].concat().iter().map(|x| *x as f32).collect();
    close(&weight(&made, "layers.0.router.score"), &expected, 1e-5, "the first layer");
    let others = weight(&made, "layers.1.router.score");
    assert_ne!(others, weight(&made, "layers.0.router.score"));
    for row in others.chunks_exact(d) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    // Of embeddings, the sum over all tokens, in every layer.
    let cheap = TWO.replace("gate_mode: hidden", "gate_mode: cheap_embed");
    let (made, _) = all.join(&cheap, "cheap").expect("joins");
    let of = |texts: &[&str]| {
        let rows = texts.iter().flat_map(|text| tokens(text)).map(row).collect();
        unit(sum(rows))
    };
    let second = unit(less(of(&["code", "fn main"]), of(&["the sea"])));
    let expected: Vec<f32> =
        [of(&["the sea", "a ship"]), second].concat().iter().map(|x| *x as f32).collect();
    for layer in 0..base.model.config().layers {
        let name = format!("layers.{layer}.router.score");
        close(&weight(&made, &name), &expected, 1e-5, &name);
    }
}

#[test]
fn a_shared_expert_is_scaled_and_weighed_by_its_prompts() {
    let all = Branches::new();
    all.other("other", 3);
    let shared = "shared_experts:\n  - source_model: @/other\n    positive_prompts: [chat]\n    \
                  residual_scale: 0.25\narchitecture: qwen\ndtype: bfloat16\n";
    let (made, _) = all.join(&format!("{TWO}{shared}"), "qwen").expect("joins");
    let other = load_model(&all.at("other")).expect("opens");
    let quarter: Vec<f32> = weight(&other, "layers.1.down")
        .iter()
        .map(|x| half::bf16::from_f32(x / 4.0).to_f32())
        .collect();
    assert_eq!(weight(&made, "layers.1.shared_down"), quarter);
    let row = weight(&made, "layers.1.router.shared_gate");
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() < 0.01, "{length}");
    let plain = shared.replace("    positive_prompts: [chat]\n", "").replace("qwen", "deepseek");
    let (made, _) = all.join(&format!("{TWO}{plain}"), "deepseek").expect("joins");
    assert!(made.model.weights().iter().all(|(spec, _)| !spec.name.ends_with("shared_gate")));
    // Dice read no prompts, and follow the seed.
    let random = TWO.replace("gate_mode: hidden", "gate_mode: random");
    let (made, report) = all.join(&random, "random").expect("joins");
    assert!(report.likeness.is_empty());
    let fresh = weight(&made, "layers.0.router.score");
    assert!(fresh.iter().any(|x| *x != 0.0) && fresh.iter().all(|x| x.abs() < 1.0));
}

#[test]
fn plans_that_cannot_be_had_are_refused_by_name() {
    let all = Branches::new();
    all.other("other", 3);
    let narrow = load_model(&all.at("base")).expect("opens").model.config().clone();
    stored(&all.at("narrow"), &ModelConfig { ffn: narrow.ffn / 2, ..narrow.clone() }, 1);
    stored(&all.at("deep"), &ModelConfig { layers: narrow.layers + 1, ..narrow.clone() }, 1);
    stored(&all.at("shared"), &tiny(Sharing::MiddleCycle, 8, 3), 1);
    let with = |from: &str, to: &str| {
        assert!(TWO.contains(from), "{from}");
        TWO.replace(from, to)
    };
    let more = |line: &str| format!("{TWO}{line}\n");
    let long = "word ".repeat(20_000);
    let cases: &[(String, &[&str])] = &[
        ("[]".into(), &["a map of keys", "a list of 0"]),
        ("a: [".into(), &["YAML"]),
        (with("base_model: @/base\n", ""), &["base_model", "none"]),
        (
            with("base_model: @/base", "base_model: org/name"),
            &["base_model", "org/name", "hf download"],
        ),
        (with("base_model: @/base", "base_model: a+b"), &["base_model", "a+b", "adapter"]),
        (with("base_model: @/base", "base_model: [a]"), &["base_model", "a list of 1"]),
        (with("@/other", "@/missing"), &["experts[1].source_model", "missing"]),
        (with("@/other", "@/narrow"), &["narrow", "ffn", "same shape"]),
        (with("@/other", "@/deep"), &["deep", "layers", "same shape"]),
        (with("@/other", "@/shared"), &["shared", "sharing", "none"]),
        (with("hidden", "hidden_avg"), &["gate_mode", "hidden_avg", "cheap_embed"]),
        (with("hidden", "uniform_random"), &["gate_mode", "uniform_random"]),
        (with("experts_per_token: 1", "experts_per_token: 0"), &["experts_per_token", "found 0"]),
        (with("experts_per_token: 1", "experts_per_token: 3"), &["experts_per_token", "1 to 2"]),
        (with("experts_per_token: 1", "experts_per_token: two"), &["experts_per_token", "two"]),
        (with("experts_per_token: 1", "experts_per_token: 1\nexperts_per_token: 2"), &["twice"]),
        (with("experts:\n", "expert:\n"), &["expert", "one of base_model"]),
        (with("    positive_prompts: [code, \"fn main\"]\n", ""), &["experts[1].positive_prompts"]),
        (with("- the sea", "- [the sea]"), &["negative_prompts", "a list of 1"]),
        (with("- the sea", "- \"\""), &["negative_prompts", "a text"]),
        (
            with("    negative_prompts:", "    noise_scale: 0.1\n    negative_prompts:"),
            &["noise_scale"],
        ),
        (
            with("    negative_prompts:", "    residual_scale: .nan\n    negative_prompts:"),
            &["residual_scale"],
        ),
        (with("fn main", long.as_str()), &["experts[1].positive_prompts", "context"]),
        (with("[code, \"fn main\"]", "[the sea]"), &["experts[1]", "differ"]),
        (more("dtype: int8"), &["dtype", "int8", "bfloat16"]),
        (more("merge_method: ties"), &["merge_method", "leave it out"]),
        (more("architecture: qwen"), &["shared_experts", "a shared expert with prompts"]),
        (more("architecture: olmoe"), &["architecture", "olmoe"]),
        (more("shared_experts: [{source_model: @/base}, {source_model: @/base}]"), &["2 models"]),
        (more("shared_experts: 3"), &["shared_experts", "a list of models"]),
        (
            more("shared_experts: [{source_model: @/base}]\narchitecture: mixtral"),
            &["shared_experts", "no shared expert"],
        ),
        (
            more("shared_experts: [{source_model: @/base, negative_prompts: [the sea]}]"),
            &["shared_experts[0].positive_prompts", "negative_prompts", "found none"],
        ),
        ("base_model: @/base\nexperts: []\n".into(), &["experts", "at least one"]),
        (
            with(
                "[code, \"fn main\"]\n    negative_prompts:\n    - the sea",
                "[\"the sea\", a ship]",
            ),
            &["positive_prompts", "the same for all"],
        ),
    ];
    for (i, (text, needles)) in cases.iter().enumerate() {
        let out = format!("out{i}");
        let error = match all.join(text, &out) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        };
        for needle in *needles {
            assert!(error.contains(needle), "no {needle:?} in {error}\nof {text}");
        }
        assert!(!all.at(&out).exists(), "{text}");
    }
}
