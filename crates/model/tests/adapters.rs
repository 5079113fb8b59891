//! Relaxations: what they add to the parameter table and to the costs, and what is refused.

mod common;

use common::{fixed, fresh};
use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::adapters::{UsedMatrix, dora, dynmole, mola, mos};
use model::cost::{Convention, forward_flops, nominal_capacities, parameters};
use model::params::{Group, ParamPlace};
use model::table::specs;
use model::{KvMode, ModelConfig, Rows, Rule, Sharing, attention, mlp};
use testkit::{How, SHARINGS, at_once, close, ids};

fn with(relax: Relaxation, sharing: Sharing) -> ModelConfig {
    ModelConfig { relax, ..fixed(sharing) }
}

fn added(config: &ModelConfig) -> Vec<(String, (usize, usize))> {
    let table = specs(config, &config.check().expect("legal"));
    let is_added = |name: &str| name.starts_with("relax.") || name.starts_with("encoding.");
    table.into_iter().filter(|s| is_added(&s.name)).map(|s| (s.name, s.shape)).collect()
}

#[test]
fn the_table_has_one_adapter_a_use() {
    let settings = lora::Config {
        rank: 4,
        parts: vec![attention::QUERY, mlp::DOWN],
        ..lora::Config::default()
    };
    let config = with(Relaxation::Lora(settings.clone()), Sharing::MiddleCycle);
    let expected: Vec<(String, (usize, usize))> = (0..3)
        .flat_map(|r| {
            [("query.", (4, 32), (32, 4)), ("down.", (4, 40), (32, 4))].into_iter().flat_map(
                move |(part, a, b)| {
                    [(format!("relax.1.{part}{r}.down"), a), (format!("relax.1.{part}{r}.up"), b)]
                },
            )
        })
        .collect();
    assert_eq!(added(&config), expected, "none for first and last layers");
    let skipped = lora::Config { skip_first: true, ..settings.clone() };
    assert_eq!(added(&with(Relaxation::Lora(skipped), Sharing::MiddleCycle)), expected[4..]);
    let dora = added(&with(Relaxation::Dora(dora::Config(settings)), Sharing::MiddleCycle));
    assert_eq!(dora.len(), 18);
    assert!(dora.contains(&("relax.1.down.2.length".into(), (1, 32))), "{dora:?}");
    let encoding = added(&with(Relaxation::Encoding(Default::default()), Sharing::Sequence));
    assert_eq!(encoding, [0, 1, 2].map(|r| (format!("encoding.{r}"), (1, 32))));
    // Later uses have no keys and values of their own under sharing.
    let shared = ModelConfig {
        kv: KvMode::Shared,
        ..with(Relaxation::Lora(Default::default()), Sharing::Cycle)
    };
    let names: Vec<String> = added(&shared).into_iter().map(|(name, _)| name).collect();
    assert!(
        names.contains(&"relax.0.key_value.0.up".into())
            && !names.contains(&"relax.0.key_value.1.up".into())
    );
    assert!(names.contains(&"relax.1.query.2.up".into()), "{names:?}");
}

#[test]
fn costs_follow_the_table() {
    for sharing in SHARINGS.into_iter().filter(|&sharing| sharing != Sharing::None) {
        let plain = with(Relaxation::NONE, sharing);
        let plan = plain.check().expect("legal");
        let flops = |config: &ModelConfig| {
            forward_flops(config, &plan, 16, &nominal_capacities(config), Convention::Full)
        };
        for relax in Relaxation::all() {
            let config = with(relax, sharing);
            let table = specs(&config, &plan);
            let added = table.iter().filter(|s| s.group == Group::Adapter);
            let met: f64 = added.map(|s| s.count() as f64 * s.active).sum();
            let all: u64 = table.iter().map(|s| s.count() as u64).sum();
            let counted = parameters(&config, &plan);
            assert_eq!(counted.unique + counted.embedding, all, "{config:?}");
            let more = flops(&config) - flops(&plain);
            assert!((more - 2.0 * met).abs() < 1e-6, "{more} {met} {config:?}");
        }
    }
}

#[test]
fn fresh_adapters_and_encodings_are_neutral() {
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    for sharing in SHARINGS.into_iter().filter(|&sharing| sharing != Sharing::None) {
        let run = |model| at_once(&model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
        let expected = run(fresh(&with(Relaxation::NONE, sharing)));
        for relax in Relaxation::all() {
            let config = with(relax, sharing);
            let neutral = model::Model::fresh(&config, 7).expect("legal");
            close(&run(neutral), &expected, 1e-5, &format!("{config:?}"));
            if config.relax != Relaxation::NONE {
                let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let apart = run(fresh(&config))
                    .iter()
                    .zip(&expected)
                    .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(apart > 1e-3 * largest, "uses differ once they have learned: {config:?}");
            }
        }
    }
}

/// Adapters in all uses but the first, for a layer that has one use.
fn nowhere(make: fn(lora::Config) -> Relaxation) -> Relaxation {
    make(lora::Config { skip_first: true, layers: AdaptedLayers::All, ..Default::default() })
}

#[test]
fn impossible_relaxations_are_refused() {
    let lora = |change: &dyn Fn(&mut lora::Config)| {
        let mut settings = lora::Config::default();
        change(&mut settings);
        with(Relaxation::Lora(settings), Sharing::Cycle)
    };
    let mola = |change: &dyn Fn(&mut mola::Config)| {
        let mut settings = mola::Config::default();
        change(&mut settings);
        with(Relaxation::Mola(settings), Sharing::Cycle)
    };
    let mos = |change: &dyn Fn(&mut mos::Config)| {
        let mut settings = mos::Config::default();
        change(&mut settings);
        with(Relaxation::Mos(settings), Sharing::Cycle)
    };
    let dynmole = |change: &dyn Fn(&mut dynmole::Config)| {
        let mut settings = dynmole::Config::default();
        change(&mut settings);
        with(Relaxation::Dynmole(settings), Sharing::Cycle)
    };
    for (config, field) in [
        (lora(&|c| c.rank = 0), "relax.rank"),
        (lora(&|c| c.rank = 33), "relax.rank"),
        (lora(&|c| c.alpha = f64::NAN), "relax.alpha"),
        (lora(&|c| c.alpha = 0.0), "relax.alpha"),
        (lora(&|c| c.alpha = 1e300), "relax.alpha"),
        (lora(&|c| c.parts.clear()), "relax.parts"),
        (lora(&|c| c.parts = vec![attention::QUERY, attention::QUERY]), "relax.parts"),
        (mola(&|c| c.top_k = 1), "relax.top_k"),
        (mola(&|c| c.top_k = 5), "relax.top_k"),
        (mola(&|c| c.experts = vec![4, 2, 1]), "relax.experts"),
        (mola(&|c| c.experts = vec![4, 1]), "relax.experts"),
        (
            mola(&|c| {
                c.experts = vec![5, 3];
                c.top_k = 4;
            }),
            "relax.top_k",
        ),
        (mola(&|c| c.experts.clear()), "relax.experts"),
        (mola(&|c| c.experts = vec![257]), "relax.experts"),
        (mola(&|c| c.adapter.rank = 33), "relax.rank"),
        (lora(&|c| c.from_token = 1000), "relax.from_token"),
        (mos(&|c| c.rank = 0), "relax.rank"),
        // Six uses share a pool: 1 + (4 - 1) * 6.
        (mos(&|c| c.rank = 20), "relax.rank"),
        (mos(&|c| c.budget = 0), "relax.budget"),
        (mos(&|c| c.budget = 9), "relax.budget"),
        (mos(&|c| c.own_rank = 4), "relax.own_rank"),
        (mos(&|c| c.shards = 0), "relax.shards"),
        (mos(&|c| c.shards = 3), "relax.shards"),
        (mos(&|c| c.alpha = 0.0), "relax.alpha"),
        (dynmole(&|c| c.entropy_index = 0.0), "relax.entropy_index"),
        (dynmole(&|c| c.entropy_index = 2.1), "relax.entropy_index"),
        (dynmole(&|c| c.entropy_index = f64::NAN), "relax.entropy_index"),
        (dynmole(&|c| c.threshold = 0.0), "relax.threshold"),
        // Eight even probabilities have 1.8775.
        (dynmole(&|c| c.threshold = 1.878), "relax.threshold"),
        (dynmole(&|c| c.experts = vec![2]), "relax.threshold"),
        (dynmole(&|c| c.top_p = 1.0), "relax.top_p"),
        (dynmole(&|c| c.top_k = 0), "relax.top_k"),
        (dynmole(&|c| c.top_k = 8), "relax.top_k"),
        (dynmole(&|c| c.entropy_weight = -1.0), "relax.entropy_weight"),
        (dynmole(&|c| c.balance_weight = f64::INFINITY), "relax.balance_weight"),
        (with(Relaxation::Encoding(Default::default()), Sharing::None), "relax.kind"),
        (with(Relaxation::Dora(Default::default()), Sharing::None), "relax.layers"),
    ] {
        assert_eq!(config.check().expect_err("refused").field, field);
    }
    // A checkpoint may hold adapters on nothing, a recipe may not.
    for make in [Relaxation::Lora, |c| Relaxation::Dora(dora::Config(c))] {
        let config = with(nowhere(make), Sharing::None);
        config.check().expect("a model without adapters");
        assert_eq!(config.check_effects().expect_err("refused").field, "relax");
    }
}

#[test]
fn adapters_reach_every_layer_of_any_model_where_they_are_asked_to() {
    let parts = ModelConfig::default().mlp.settings().adaptable();
    let count = parts.len();
    let settings =
        lora::Config { rank: 3, parts, layers: AdaptedLayers::All, ..lora::Config::default() };
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    let run = |model| at_once(&model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
    for sharing in SHARINGS {
        let plain = with(Relaxation::NONE, sharing);
        let expected = run(fresh(&plain));
        for relax in
            [Relaxation::Lora(settings.clone()), Relaxation::Dora(dora::Config(settings.clone()))]
        {
            let config = with(relax, sharing);
            let plan = config.check().expect("legal");
            let adapters = specs(&config, &plan)
                .into_iter()
                .filter(|spec| spec.name.ends_with(".up") && spec.name.starts_with("relax."));
            assert_eq!(adapters.count(), count * plan.unrolled().count(), "{sharing:?}");
            let neutral = model::Model::fresh(&config, 7).expect("legal");
            close(&run(neutral), &expected, 1e-5, &format!("{config:?}"));
            let apart =
                run(fresh(&config)).iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.01);
            assert!(apart, "{config:?}");
        }
    }
}

/// Two stored layers with two and four adapters for each use of the query.
fn several(top_k: usize) -> ModelConfig {
    let adapter = lora::Config { rank: 3, parts: vec![attention::QUERY], ..Default::default() };
    with(Relaxation::Mola(mola::Config { adapter, experts: vec![2, 4], top_k }), Sharing::Cycle)
}

#[test]
fn a_matrix_may_have_several_adapters_and_a_router() {
    let config = several(2);
    let table = specs(&config, &config.check().expect("legal"));
    let of = |start: &str| -> Vec<(String, (usize, usize), f64)> {
        let found = table.iter().filter(|s| s.name.starts_with(start));
        found.map(|s| (s.name[start.len()..].to_owned(), s.shape, s.active)).collect()
    };
    let (down, up) = ((3, 32), (32, 3));
    let pair = |k, share| [(format!("down.{k}"), down, share), (format!("up.{k}"), up, share)];
    let expected = |experts: usize| {
        let mut all = vec![("score".to_owned(), (experts, 32), 1.0)];
        all.extend((0..experts).flat_map(|k| pair(k, 2.0 / experts as f64)));
        all
    };
    for recursion in 0..3 {
        assert_eq!(of(&format!("relax.0.query.{recursion}.")), expected(2));
        assert_eq!(of(&format!("relax.1.query.{recursion}.")), expected(4));
    }
}

/// The weights of the chosen adapters sum to 1: if all are the same, so is the choice, and the
/// model computes what it does with one of them.
#[test]
fn equal_adapters_are_one_adapter() {
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    let run =
        |model: &model::Model| at_once(model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
    let mola = several(2);
    let Relaxation::Mola(settings) = &mola.relax else { panic!("made above") };
    let lora = ModelConfig { relax: Relaxation::Lora(settings.adapter.clone()), ..mola.clone() };
    let one = fresh(&lora);
    let same = model::Model::build(&mola, |spec| {
        let name = spec.name.trim_end_matches(|c: char| c == '.' || c.is_ascii_digit());
        let known =
            one.weights().iter().find(|(other, _)| other.name == spec.name || other.name == name);
        Ok::<_, model::ConfigError>(
            known.map_or_else(|| spec.fresh(5), |(_, weight)| weight.read()),
        )
    });
    let same = same.expect("legal");
    close(&run(&same), &run(&one), 1e-5, "equal adapters");
    let apart = run(&fresh(&mola)).iter().zip(&run(&one)).any(|(a, b)| (a - b).abs() > 0.01);
    assert!(apart, "different adapters are another model");
}

/// The stored layers that get adapters are cut into equal groups, and the ends of a middle layout
/// are not among them.
#[test]
fn numbers_of_adapters_follow_the_adapted_layers() {
    let adapter = lora::Config { rank: 2, parts: vec![attention::QUERY], ..Default::default() };
    let mola = mola::Config { adapter, experts: vec![2, 3, 5], top_k: 2 };
    let config =
        ModelConfig { layers: 11, relax: Relaxation::Mola(mola), ..fixed(Sharing::MiddleCycle) };
    let table = specs(&config, &config.check().expect("legal"));
    for (stored, experts) in [(1, 2), (2, 3), (3, 5)] {
        let name = format!("relax.{stored}.query.0.score");
        let score = table.iter().find(|spec| spec.name == name).expect("adapted");
        assert_eq!(score.shape, (experts, 32), "{name}");
    }
}

/// How fresh weights start and how the optimizer treats them.
#[test]
fn fresh_factors_start_as_their_papers_say() {
    let config = with(Relaxation::Dora(Default::default()), Sharing::Cycle);
    let table = specs(&config, &config.check().expect("legal"));
    let mut seen = 0;
    for spec in table.iter().filter(|spec| spec.name.starts_with("relax.")) {
        seen += 1;
        let values = spec.fresh(3);
        let square = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let size = (square / values.len() as f64).sqrt();
        match spec.name.rsplit('.').next().expect("a factor") {
            "down" => assert!((size / config.init_std - 1.0).abs() < 0.2, "{size}"),
            "up" => assert!(values.iter().all(|x| *x == 0.0)),
            "length" => {
                assert!(values.iter().all(|x| *x == 1.0));
                assert_eq!(spec.group, Group::Norm, "magnitudes do not decay");
                continue;
            }
            other => panic!("{other}"),
        }
        assert_eq!(spec.group, Group::Adapter);
    }
    assert_eq!(seen, 3 * 2 * 6, "three factors of two matrices in six uses");
}

/// A model whose uses have what adapters add merged into matrices of their own computes the same,
/// for every kind that says it can be merged; the others have no such matrix.
#[test]
fn whatever_merges_computes_the_same_merged() {
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    let run = |model| at_once(&model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
    for relax in testkit::adapters(&ModelConfig::default().mlp) {
        let config = with(relax, Sharing::Cycle);
        let model = fresh(&config);
        let (settings, plan) = (config.relax.settings(), model.plan());
        let uses: Vec<_> = plan.unrolled().collect();
        let kept = |place: &ParamPlace| {
            let found = model.weights().iter().find(|(spec, _)| spec.place == *place);
            found.map(|(spec, weight)| (spec.clone(), weight.read()))
        };
        let mut merges = true;
        let flat = ModelConfig {
            sharing: Sharing::None,
            recursions: 1,
            relax: Relaxation::NONE,
            ..config.clone()
        };
        let merged = model::Model::build(&flat, |spec| {
            let Some(layer) = spec.place.layer() else {
                return Ok::<_, model::ConfigError>(kept(&spec.place).expect("the same").1);
            };
            let at = uses[layer];
            let (base, shared) = kept(&spec.place.in_layer(at.stored, 0)).expect("stored");
            if spec.place.part().is_none() {
                return Ok(shared);
            }
            let site = UsedMatrix { sizes: &config.sizes(), plan, at, base: &base };
            if !settings.adapts(site) {
                return Ok(shared);
            }
            let factors = |factor| kept(&settings.place(site, factor)?).map(|(_, values)| values);
            let merged = settings.merged(site, &shared, &factors);
            merges &= merged.is_some();
            Ok(merged.unwrap_or(shared))
        })
        .expect("legal");
        if config.relax.kind() == "encoding" {
            assert!(!settings.merges(), "the stream is no matrix");
            continue;
        }
        assert_eq!(merges, settings.merges(), "{:?}", config.relax);
        if merges {
            close(&run(merged), &run(model), 5e-5, &format!("{:?}", config.relax));
        }
    }
}

/// What DoRA keeps between passes is of the weights that there are.
#[test]
fn a_changed_weight_changes_the_lengths() {
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    let run =
        |model: &model::Model| at_once(model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
    let config = with(Relaxation::Dora(Default::default()), Sharing::Cycle);
    for name in ["layers.0.query", "relax.0.query.1.down", "relax.1.key_value.2.up"] {
        let model = fresh(&config);
        let before = run(&model);
        let weight = model.weights().iter().find(|(spec, _)| spec.name == name).expect("listed");
        // Twice as long in one row alone, so that the row's ratio changes.
        let mut values = weight.1.read();
        let half = values.len() / 2;
        values[..half].iter_mut().for_each(|x| *x *= -3.0);
        weight.1.write(values);
        let anew = model::Model::build(&config, |spec| {
            let of = model.weights().iter().find(|(other, _)| other.name == spec.name);
            Ok::<_, model::ConfigError>(of.expect("the same table").1.read())
        });
        let after = run(&model);
        assert_ne!(before, after, "{name}");
        assert_eq!(after, run(&anew.expect("legal")), "{name}");
    }
}

/// The same adapters for the rows of tokens from this one on.
fn from_token(config: &ModelConfig, first: usize) -> Option<ModelConfig> {
    let mut relax = serde_json::to_value(&config.relax).expect("plain data");
    *relax.get_mut("from_token")? = first.into();
    let relax = serde_json::from_value(relax).expect("the same kind");
    Some(ModelConfig { relax, ..config.clone() })
}

/// Rows of tokens before the first one that adapters change have the bits of the model without
/// adapters, as long as they see no others; with a first token below all, adapters are whole.
#[test]
fn rows_of_earlier_tokens_keep_their_bits() {
    let (old, new): (Vec<u32>, Vec<u32>) = ids(4, 40).into_iter().partition(|&id| id < 20);
    let tokens: Vec<u32> = old[..8].iter().chain(&new[..4]).copied().collect();
    let run = |config: &ModelConfig, tokens: &[u32]| {
        let rows = Rows::batch(1, tokens.len());
        at_once(&fresh(config), tokens, &rows, &How::by(&Rule::NonCausal)).logits
    };
    let mut seen = 0;
    for relax in testkit::adapters(&ModelConfig::default().mlp) {
        let whole = with(relax, Sharing::Cycle);
        let (Some(masked), Some(whole)) = (from_token(&whole, 20), from_token(&whole, 0)) else {
            continue;
        };
        let plain = run(&with(Relaxation::NONE, Sharing::Cycle), &tokens);
        let (found, of_all) = (run(&masked, &tokens), run(&whole, &tokens));
        let before = plain.len() / tokens.len() * 8;
        assert!(found[..before] == plain[..before], "{:?}", masked.relax);
        let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() == 0.0);
        assert!(!differ(&found[before..], &plain[before..]), "{:?}", masked.relax);
        assert!(!differ(&found[before..], &of_all[before..]), "{:?}", masked.relax);
        assert!(run(&masked, &new[..6]) == run(&whole, &new[..6]), "{:?}", masked.relax);
        seen += 1;
    }
    assert!(seen > 20, "{seen} adapters");
}

/// All uses of shards together store what LoRA of the budget's rank stores; and where a use has
/// shards of its own alone, one a row, it is LoRA.
#[test]
fn shards_cost_their_budget_and_alone_are_lora() {
    let numbers = |config: &ModelConfig| -> usize {
        let table = specs(config, &config.check().expect("legal"));
        table.iter().filter(|s| s.name.starts_with("relax.")).map(|s| s.count()).sum()
    };
    let lora = lora::Config { rank: 4, alpha: 6.0, ..lora::Config::default() };
    let lora = with(Relaxation::Lora(lora), Sharing::Cycle);
    for (own_rank, shards) in [(0, 4), (1, 2), (3, 8)] {
        let mos = mos::Config { rank: 8, budget: 4, own_rank, shards, ..mos::Config::default() };
        assert_eq!(numbers(&with(Relaxation::Mos(mos), Sharing::Cycle)), numbers(&lora));
    }
    let mos = mos::Config {
        rank: 4,
        budget: 4,
        own_rank: 4,
        shards: 1,
        alpha: 6.0,
        ..Default::default()
    };
    let mos = fresh(&with(Relaxation::Mos(mos), Sharing::Cycle));
    let same = model::Model::build(&lora, |spec| {
        let is_added = spec.name.starts_with("relax.");
        let turned_name = spec.name.replace(".down", ".own_a").replace(".up", ".own_b");
        let name = if is_added { turned_name } else { spec.name.clone() };
        let found = mos.weights().iter().find(|(other, _)| other.name == name).expect("the same");
        let (values, (n, rank)) = (found.1.read(), spec.shape);
        let turned = (0..n * rank).map(|i| values[(i % rank) * n + i / rank]).collect();
        let is_up = is_added && spec.name.ends_with(".up");
        Ok::<_, model::ConfigError>(if is_up { turned } else { values })
    });
    let (tokens, rows) = (ids(4, 12), Rows::batch(1, 12));
    let run =
        |model: &model::Model| at_once(model, &tokens, &rows, &How::by(&Rule::NonCausal)).logits;
    close(&run(&mos), &run(&same.expect("legal")), 5e-5, "shards of a use's own alone");
}

/// A recipe that names a kind and nothing else gets the defaults that the documents list, also
/// where a kind takes the settings of another.
#[test]
fn defaults_are_those_of_the_documents() {
    for relax in Relaxation::all() {
        let named = serde_json::json!({ "kind": relax.kind() });
        let found: Relaxation = serde_json::from_value(named).expect("a kind");
        assert_eq!(found, relax);
    }
}

/// The vocabulary may be left to the data: until it is known, any token may be the first.
#[test]
fn the_first_token_waits_for_the_vocabulary() {
    let config = from_token(&with(Relaxation::Lora(Default::default()), Sharing::Cycle), 49);
    let config = config.expect("settings of places");
    let check = |vocab_size| ModelConfig { vocab_size, ..config.clone() }.check();
    assert!(check(50).is_ok());
    assert_eq!(check(49).expect_err("refused").field, "relax.from_token");
    assert_eq!(check(0).expect_err("no vocabulary yet").field, "vocab_size");
}
