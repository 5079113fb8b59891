//! What makes our own exported form a folder that transformers loads: the model's code in Python,
//! the fields of config.json that name it, and a card.

use data::SpecialTokens;
use model::{Causality, ModelConfig, Rule};
use serde_json::{Map, Value, json};
use train::Stored;

use crate::Costs;

/// The models of the family in plain PyTorch.
const CODE: &str = include_str!("modeling_lathe.py");
/// Its name in a folder, without ending.
const MODULE: &str = "modeling_lathe";

/// Tables of a recipe's model, with the kinds and the fields that the code knows, or that matter to
/// training alone. The first is the model itself.
const KNOWN: &[Known] = &[
    Known {
        table: "",
        kinds: "",
        fields: "vocab_size width layers heads kv_heads head_dim ffn context rope_theta norm_eps \
                 tie_embeddings head_bias init_std attention rotary norms multipliers mlp \
                 sharing recursions share_norms relax router kv",
    },
    Known {
        table: "attention",
        kinds: "",
        fields: "bias output_bias query_key_norm clip sinks window window_layers scale soft_cap \
                 kv_rank query_rank rope_dim value_dim latent_scale",
    },
    Known { table: "rotary", kinds: "", fields: "share layers scaling window_theta" },
    Known {
        table: "rotary.scaling",
        kinds: "none linear llama3 yarn dynamic longrope",
        fields: "factor low high original_context beta_fast beta_slow attention_factor mscale \
                 mscale_all_dim truncate short_factor long_factor long_context",
    },
    Known { table: "norms", kinds: "rms layer", fields: "kind place plus_one" },
    Known {
        table: "multipliers",
        kinds: "",
        fields: "embedding residual logits_divisor logit_cap",
    },
    Known {
        table: "router",
        kinds: "expert_choice token_choice random fixed",
        fields: "network function alpha temperature gating gate_release_steps capacities \
                 capacity_warmup_steps sampling sampling_weight z_weight causal train_causal_from \
                 running_decay balance balance_weight balance_warmup_steps gate_on",
    },
    Known {
        table: "relax",
        kinds: "none lora dora mola dynmole loha lokr ia3 miss mos vera wara encoding",
        fields: "rank alpha rank_stabilized rank_pattern alpha_pattern parts layers skip_first \
                 from_token experts top_k factor inputs ranks projection_seed initial \
                 entropy_index threshold top_p entropy_weight balance_weight budget \
                 own_rank shards selection_seed",
    },
    Known {
        table: "mlp",
        kinds: "dense experts",
        fields: "activation bias count counts width latent modulated shortcut identity_experts \
                 zero_experts constant_experts shared shared_gate shared_mix dense_first every \
                 dense_layers biases dense_biases limit alpha own_routers router",
    },
    Known {
        table: "mlp.router",
        kinds: "top_k top_p expert_choice sparse_mixer hash random",
        fields: "network memory top_k function normalize scale least groups top_groups group_score \
                 equal_groups capacity priority warmup_steps balance balance_weight budget \
                 group_weight z_weight pooled_weight logit_bias soft_cap p limit entropy_weight \
                 running_decay jitter of each",
    },
];

struct Known {
    table: &'static str,
    kinds: &'static str,
    fields: &'static str,
}

/// Why the code cannot run a model.
pub(crate) fn unknown(stored: &Stored) -> Option<String> {
    let config = stored.model.config();
    let router = &config.router;
    if stored.rule.is_none() && router.settings().causality() != Causality::Always {
        return Some(format!("router \"{}\" without a causal rule", router.kind()));
    }
    if stored.rounded.is_some() {
        return Some("rounded weights".to_owned());
    }
    unknown_setting(config)
}

/// The first setting of a recipe that the code does not know, unless it is what it is by default.
fn unknown_setting(config: &ModelConfig) -> Option<String> {
    let given = json_of(config);
    let default = json_of(&ModelConfig {
        router: like(&config.router),
        mlp: like(&config.mlp),
        relax: like(&config.relax),
        ..ModelConfig::default()
    });
    for known in KNOWN {
        let of = |value: &Value| -> Map<String, Value> {
            let path = known.table.split('.').filter(|part| !part.is_empty());
            let table = path.fold(value, |value, part| &value[part]);
            table.as_object().cloned().unwrap_or_default()
        };
        let (given, default) = (of(&given), of(&default));
        for (name, value) in &given {
            let words = if name == "kind" { known.kinds } else { known.fields };
            let word = if name == "kind" { value.as_str().unwrap_or_default() } else { name };
            let is_known = words.split_whitespace().any(|known| known == word);
            if !is_known && (name == "kind" || default.get(name) != Some(value)) {
                let at = if known.table.is_empty() { "" } else { "." };
                return Some(format!("model.{}{at}{name} = {value}", known.table));
            }
        }
    }
    None
}

/// The defaults of the same kind.
fn like<T: serde::Serialize + serde::de::DeserializeOwned + Clone>(settings: &T) -> T {
    let kind = json_of(settings)["kind"].clone();
    serde_json::from_value(json!({ "kind": kind })).unwrap_or_else(|_| settings.clone())
}

fn json_of(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("our own types have string keys and finite numbers")
}

/// What transformers reads of config.json beside our own fields.
pub(crate) fn fields(stored: &Stored, special: &SpecialTokens) -> Map<String, Value> {
    let config = stored.model.config();
    let mut parameters = Map::new();
    for (spec, _) in stored.model.weights() {
        parameters.insert(spec.name.clone(), json!([spec.shape.0, spec.shape.1]));
    }
    let fields = json!({
        "auto_map": {
            "AutoConfig": format!("{MODULE}.LatheConfig"),
            "AutoModelForCausalLM": format!("{MODULE}.LatheForCausalLM"),
        },
        "parameters": parameters,
        "router_seed": 0,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "torch_dtype": "float32",
        "bos_token_id": special.bos,
        "eos_token_id": special.eos.first(),
        "pad_token_id": special.pad,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Code and card, by file name.
pub(crate) fn files(stored: &Stored, card: &Card) -> Vec<(String, Vec<u8>)> {
    vec![
        (format!("{MODULE}.py"), CODE.as_bytes().to_vec()),
        ("README.md".to_owned(), card.text(stored).into_bytes()),
    ]
}

/// What a card says beside the model itself.
#[derive(Clone, Debug, Default)]
pub struct Card {
    /// What the model is called.
    pub name: String,
    /// Names and values of what was measured on held-out text.
    pub results: Vec<(String, f64)>,
}

impl Card {
    /// Markdown with the front matter of model cards.
    fn text(&self, stored: &Stored) -> String {
        let config = stored.model.config();
        let name = json!(self.name).to_string();
        let mut text = String::from(
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- lathe\n",
        );
        text += &format!("- {}\n", family(config).replace(' ', "-"));
        if !self.results.is_empty() {
            text += &format!(
                "model-index:\n- name: {name}\n  results:\n  - task:\n      type: \
                 text-generation\n    dataset:\n      name: held-out text of the run\n      type: \
                 text\n    metrics:\n"
            );
            for (what, value) in &self.results {
                let words: Vec<&str> =
                    what.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
                text += &format!(
                    "    - type: {}\n      name: {what}\n      value: {value}\n",
                    words.join("_")
                );
            }
        }
        text += &format!(
            "---\n\n# {}\n\nA {} model made with Lathe.\n\n",
            self.name.replace(['\n', '\r'], " "),
            family(config)
        );
        text += "| | |\n|---|---|\n";
        for (what, value) in table(stored) {
            text += &format!("| {what} | {value} |\n");
        }
        for (what, value) in &self.results {
            text += &format!("| {what} | {value:.4} |\n");
        }
        text += &format!(
            "\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             folder = \".\"\n\
             tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n\
             model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n\
             ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n\
             print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))\n\
             print(model(**ids).depths)  # recursions of each token\n```\n\n\
             `{MODULE}.py` is the whole model in plain PyTorch; `lathe import` reads the folder \
             back.\n"
        );
        text
    }
}

fn family(config: &ModelConfig) -> &'static str {
    let routed = config.router.settings().chooses();
    match (routed, config.sharing == model::Sharing::None, config.mlp.kind() == "experts") {
        (true, _, true) => "mixture of recursions and experts",
        (true, _, false) => "mixture of recursions",
        (false, true, true) => "mixture of experts",
        (false, true, false) => "dense",
        (false, false, true) => "recursive mixture of experts",
        (false, false, false) => "recursive",
    }
}

/// The rows of the card's table.
fn table(stored: &Stored) -> Vec<(&'static str, String)> {
    let config = stored.model.config();
    let mut rows = vec![
        ("layers", config.layers.to_string()),
        ("width", config.width.to_string()),
        ("context", config.context.to_string()),
        ("recursions", config.recursions.to_string()),
        ("router", config.router.kind().to_owned()),
    ];
    if let Ok(costs) = Costs::of(config) {
        rows.extend([
            ("stored layers", costs.stored_layers.to_string()),
            ("parameters without embedding", costs.unique_parameters.to_string()),
            ("the same, unrolled", costs.unrolled_parameters.to_string()),
            ("embedding parameters", costs.embedding_parameters.to_string()),
            ("forward FLOPs a token, with head", format!("{:.0}", costs.forward_flops_full)),
        ]);
    }
    if let Some(Rule::Causal(rule)) = &stored.rule {
        rows.push(("causal rule", rule.made_by.clone()));
    }
    if stored.step > 0 {
        rows.push(("optimizer steps", stored.step.to_string()));
        rows.push(("tokens trained on", stored.tokens.to_string()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use testkit::{MODES, SHARINGS, adapters, forms, mlps, routers, tiny};

    use super::*;

    /// Whoever adds a setting teaches it to the code, or the model is refused by its name.
    #[test]
    fn the_code_knows_the_family() {
        for router in routers() {
            for mlp in mlps() {
                for relax in adapters(&mlp) {
                    for form in forms() {
                        let plain = tiny(router.clone(), MODES[0], SHARINGS[3]);
                        let config = form.of(ModelConfig {
                            mlp: mlp.clone(),
                            relax: relax.clone(),
                            ..plain
                        });
                        assert_eq!(unknown_setting(&config), None);
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_code_knows_is_in_it() {
        for known in KNOWN {
            for kind in known.kinds.split_whitespace().filter(|kind| !ELSE.contains(kind)) {
                assert!(CODE.contains(&format!("\"{kind}\"")), "{}: {kind}", known.table);
            }
        }
    }

    /// Kinds that are what is left when the code has asked for the others.
    const ELSE: [&str; 5] = ["dense", "lora", "mola", "top_k", "yarn"];
}
