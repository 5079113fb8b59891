//! Relaxations: what they add to the parameter table and to the costs, and what is refused.

mod common;

use common::{fixed, fresh};
use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::adapters::{dora, mola};
use model::cost::{Convention, forward_flops, nominal_capacities, parameters};
use model::params::Group;
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
            assert_eq!(flops(&config) - flops(&plain), 2.0 * met, "{config:?}");
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
    for (config, field) in [
        (lora(&|c| c.rank = 0), "relax.rank"),
        (lora(&|c| c.rank = 33), "relax.rank"),
        (lora(&|c| c.alpha = f64::NAN), "relax.alpha"),
        (lora(&|c| c.alpha = 0.0), "relax.alpha"),
        (lora(&|c| c.parts.clear()), "relax.parts"),
        (lora(&|c| c.parts = vec![attention::QUERY, attention::QUERY]), "relax.parts"),
        (mola(&|c| c.top_k = 1), "relax.top_k"),
        (mola(&|c| c.top_k = 5), "relax.top_k"),
        (mola(&|c| c.experts = vec![4, 2, 1]), "relax.experts"),
        (mola(&|c| c.experts.clear()), "relax.experts"),
        (mola(&|c| c.experts = vec![257]), "relax.experts"),
        (mola(&|c| c.adapter.rank = 33), "relax.rank"),
        (with(Relaxation::Encoding(Default::default()), Sharing::None), "relax.kind"),
        (with(Relaxation::Dora(Default::default()), Sharing::None), "relax.layers"),
    ] {
        assert_eq!(config.check().expect_err("refused").field, field);
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
