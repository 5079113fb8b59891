//! Latent attention: costs worked out by hand, what it refuses, adapters on its own matrices, and
//! rounded weights. Its formula is held against `reference`, its caches and gradients against each
//! other, by the tests over every form.

mod common;

use common::{fixed, fresh};
use model::adapters::{Relaxation, lora};
use model::cost::{Convention, forward_flops, kv_bytes_per_token, parameters, row_flops};
use model::latent::{KEY_VALUE_LATENT, QUERY_LATENT};
use model::table::specs;
use model::{
    AttentionSettings, KvMode, ModelConfig, QueryKeyNorm, RouterConfig, Rows, Rule, Sharing,
    WeightFormats, attention,
};
use testkit::{How, VOCAB, at_once, ids, tiny};

/// Four heads of 8 columns, of which 4 turn, with values of 6.
fn latent() -> AttentionSettings {
    AttentionSettings {
        kv_rank: 10,
        query_rank: 12,
        rope_dim: 4,
        value_dim: 6,
        ..AttentionSettings::default()
    }
}

fn with(attention: AttentionSettings, sharing: Sharing) -> ModelConfig {
    let base = fixed(sharing);
    ModelConfig { attention, kv_heads: base.heads, ..base }
}

/// One layer of width 32: `q_latent` 12 x 32, `query` 32 x 12, `kv_latent` (10 + 4) x 32, `kv` 4 (4
/// + 6) x 10, `output` 32 x 24, and an MLP of 3 x 32 x 40.
#[test]
fn costs_are_those_of_a_count_by_hand() {
    let config = with(latent(), Sharing::None);
    let plan = config.check().expect("legal");
    let matrices = 384 + 384 + 448 + 400 + 768 + 3840;
    let norms = 32 + 32 + 12 + 10;
    let counted = parameters(&config, &plan);
    assert_eq!(counted.unique, 3 * (matrices + norms) + 32);
    assert_eq!((counted.unrolled, counted.active), (counted.unique, counted.unique));
    assert_eq!(row_flops(&config, &plan, 1), (2 * 3 * matrices) as f64);
    // Rows see 5.5 keys of 10 in the mean: two operations for each of 4 (8 + 6) columns of both.
    let head = 2.0 * 32.0 * VOCAB as f64;
    let expected = (2 * 3 * matrices) as f64 + 3.0 * 5.5 * 2.0 * 4.0 * 14.0 + head;
    let found = forward_flops(&config, &plan, 10, &[1.0], Convention::Full);
    assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
    // Keys and values of each head are kept: 4 (8 + 6) numbers in each of three layers.
    assert_eq!(config.kv_width(), 56);
    assert_eq!(kv_bytes_per_token(&config, &plan, &[1.0], 2), (3 * 56 * 2) as f64);
    let without = AttentionSettings { query_rank: 0, value_dim: 0, ..latent() };
    let config = with(without, Sharing::None);
    let matrices = 32 * 32 + 448 + 4 * (4 + 8) * 10 + 32 * 32 + 3840;
    let counted = parameters(&config, &config.check().expect("legal"));
    assert_eq!((counted.unique, config.kv_width()), (3 * (matrices + 32 + 32 + 10) + 32, 64));
}

/// Under sharing the first use alone makes latents of keys and values.
#[test]
fn later_uses_of_shared_keys_have_no_latent_of_them() {
    let base = tiny(RouterConfig::FIXED, KvMode::Shared, Sharing::Cycle);
    let config = ModelConfig { attention: latent(), kv_heads: 4, share_norms: false, ..base };
    let plan = config.check().expect("legal");
    let own = ModelConfig { kv: KvMode::RecursionWise, ..config.clone() };
    // Two stored layers, each used three times: two uses without 448 + 400 numbers of matrices.
    let spared = row_flops(&own, &plan, 3) - row_flops(&config, &plan, 3);
    assert_eq!(spared, (2 * 2 * 2 * (448 + 400)) as f64);
    let norms = |part: &str| {
        let table = specs(&config, &plan);
        table.iter().filter(|spec| spec.name.starts_with(&format!("layers.0.{part}."))).count()
    };
    assert_eq!((norms("key_value_latent_norm"), norms("query_latent_norm")), (1, 3));
}

#[test]
fn impossible_latents_are_refused_with_field_value_and_way_out() {
    let set = |change: fn(&mut ModelConfig)| {
        let mut config = with(latent(), Sharing::None);
        change(&mut config);
        config.check().expect_err("impossible")
    };
    type Case = (fn(&mut ModelConfig), &'static str, &'static str, &'static str);
    let cases: [Case; 15] = [
        (|c| c.attention.rope_dim = 0, "attention.rope_dim", "0", "even number of the 8"),
        (|c| c.attention.rope_dim = 3, "attention.rope_dim", "3", "even number of the 8"),
        (|c| c.attention.rope_dim = 8, "attention.rope_dim", "8", "not all"),
        (|c| c.attention.kv_rank = 131_073, "attention.kv_rank", "131073", "at most"),
        (|c| c.attention.query_rank = 131_073, "attention.query_rank", "131073", "at most"),
        (|c| c.attention.value_dim = 4097, "attention.value_dim", "4097", "at most"),
        (|c| c.attention.latent_scale = 0.0, "attention.latent_scale", "0", "1e-6"),
        (|c| c.attention.latent_scale = f64::NAN, "attention.latent_scale", "NaN", "1e-6"),
        (|c| c.kv_heads = 2, "kv_heads", "2", "4 as heads"),
        (|c| c.attention.bias = true, "attention.bias", "true", "false beside"),
        (
            |c| c.attention.query_key_norm = QueryKeyNorm::Head,
            "attention.query_key_norm",
            "a norm",
            "\"none\" beside",
        ),
        (|c| c.attention.clip = 2.0, "attention.clip", "2", "0 beside"),
        (|c| c.rotary.share = 0.5, "rotary.share", "0.5", "rope_dim says"),
        (|c| c.attention.kv_rank = 0, "attention.query_rank", "12", "set that for latent"),
        (
            |c| c.attention = AttentionSettings { latent_scale: 2.0, ..Default::default() },
            "attention.latent_scale",
            "2",
            "set that for latent",
        ),
    ];
    for (change, field, found, way) in cases {
        let error = set(change);
        assert_eq!(error.field, field, "{error}");
        let told = error.to_string();
        assert!(told.contains(found) && told.contains(way), "{told}");
    }
    for (field, lone) in [
        ("attention.rope_dim", AttentionSettings { rope_dim: 4, ..Default::default() }),
        ("attention.value_dim", AttentionSettings { value_dim: 4, ..Default::default() }),
    ] {
        let error = with(lone, Sharing::None).check().expect_err("without a latent");
        assert_eq!(error.field, field);
    }
    // A head of which 7 columns do not turn: the width of a head may be odd.
    let odd = ModelConfig { head_dim: 11, ..with(latent(), Sharing::None) };
    assert!(odd.check().is_ok(), "{:?}", odd.check());
}

/// Adapters stand on every matrix, the latents' too; fresh ones change nothing, others do.
#[test]
fn adapters_stand_on_latents() {
    let parts = vec![
        QUERY_LATENT,
        attention::QUERY,
        KEY_VALUE_LATENT,
        attention::KEY_VALUE,
        attention::OUTPUT,
    ];
    let base = with(latent(), Sharing::Cycle);
    let relax = Relaxation::Lora(lora::Config { rank: 3, parts, ..lora::Config::default() });
    let adapted = ModelConfig { relax, ..base.clone() };
    let tokens = ids(3, 9);
    let logits = |model: &model::Model| {
        at_once(model, &tokens, &Rows::batch(1, 9), &How::by(&Rule::NonCausal)).logits
    };
    let plain = logits(&testkit::fresh(&base, 7));
    assert_eq!(logits(&testkit::fresh(&adapted, 7)), plain);
    assert_ne!(logits(&fresh(&adapted)), plain);
    // Without a latent of queries there is no such matrix.
    let mut other = adapted;
    other.attention.query_rank = 0;
    let error = other.check().expect_err("no such matrix").to_string();
    assert!(error.contains("query_latent") && error.contains("key_value_latent"), "{error}");
}

/// Its matrices are ordinary ones for rounding.
#[test]
fn every_matrix_is_rounded() {
    let settings = AttentionSettings { kv_rank: 32, query_rank: 32, value_dim: 8, ..latent() };
    let config = with(settings, Sharing::None);
    let tokens = ids(3, 9);
    let logits = |model: &model::Model| {
        at_once(model, &tokens, &Rows::batch(1, 9), &How::by(&Rule::NonCausal)).logits
    };
    let model = fresh(&config);
    let before = logits(&model);
    model.quantize(&"int8".parse::<WeightFormats>().expect("a format")).expect("fits");
    for (spec, weight) in model.weights().iter().filter(|(spec, _)| spec.can_be_rounded()) {
        assert!(weight.bytes() < 4 * spec.count(), "{}: {}", spec.name, weight.bytes());
    }
    let after = logits(&model);
    let apart: f32 = before.iter().zip(&after).map(|(a, b)| (a - b).powi(2)).sum();
    let whole: f32 = before.iter().map(|a| a.powi(2)).sum();
    assert!(apart > 0.0 && apart < 0.05 * whole, "{apart} of {whole}");
}
