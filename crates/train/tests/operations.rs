//! Guards against slow growth that need no clock: how many operations a step calls, and how many
//! multiply-adds they perform. One test in its process, because both counts are global.

mod common;

use common::{batch, recipe};
use model::cost::prelude_flops;
use model::{KvMode, ModelConfig, RouterConfig, Sharing};
use testkit::MODES;
use train::{DataConfig, Recipe, Trainer};

const LENGTH: usize = 128;
const VOCAB: usize = 512;

/// Wide enough that matrix products outweigh the blocks in which attention rounds up.
fn wide(router: RouterConfig, kv: KvMode, sharing: Sharing) -> Recipe {
    let base = recipe(router, kv);
    let (recursions, layers) = if sharing == Sharing::None { (1, 5) } else { (3, 5) };
    let model = ModelConfig {
        vocab_size: VOCAB,
        width: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 384,
        context: LENGTH,
        sharing,
        recursions,
        layers,
        ..base.model
    };
    let data = DataConfig { sequence_length: LENGTH, ..base.data };
    Recipe { model, data, ..base }
}

/// Calls of one step on `sequences` sequences in one pass, its multiply-adds, and what the formula
/// says.
fn count(recipe: &Recipe, sequences: usize) -> (u64, f64, f64) {
    count_passes(recipe, sequences, 1)
}

/// The same in `passes` passes.
fn count_passes(recipe: &Recipe, sequences: usize, passes: usize) -> (u64, f64, f64) {
    let mut trainer = Trainer::new(recipe).expect("a legal recipe");
    let ids = testkit::tokens(5, 0, VOCAB, sequences * (LENGTH + 1));
    let texts: Vec<Vec<u32>> = ids.chunks(LENGTH + 1).map(<[u32]>::to_vec).collect();
    let batches: Vec<_> = texts.chunks(sequences / passes).map(batch).collect();
    trainer.step_on(&batches).expect("finite");
    ops::timing::measure(true);
    let before = ops::timing::multiply_adds();
    let report = trainer.step_on(&batches).expect("finite");
    let done = ops::timing::multiply_adds() - before;
    let calls = ops::timing::spent().values().map(|spent| spent.calls).sum();
    ops::timing::measure(false);
    (calls, done as f64, trainer.step_flops(&report.depths) / 2.0)
}

/// Most query rows that attention takes together.
const BLOCK: usize = 64;

/// Multiply-adds of attention in one layer that `rows` rows of a sequence take, beyond those that
/// the formula counts. Rows go in blocks, each over the keys that its last row sees; two products
/// make the result and five, scores once more among them, the gradients. The formula counts the
/// keys that each row sees, `rows (rows + 1) / 2` in all, and three times two products.
fn attention_beyond(rows: usize, width: usize) -> f64 {
    let mut pairs = 0;
    for first in (0..rows).step_by(BLOCK) {
        let last = (first + BLOCK).min(rows);
        pairs += (last - first) * last;
    }
    (7 * pairs) as f64 * width as f64 - 6.0 * (rows * (rows + 1) / 2 * width) as f64
}

/// How many rows of a sequence take each layer, where that is the same for every sequence.
fn rows_by_layer(recipe: &Recipe) -> Option<Vec<usize>> {
    let model = &recipe.model;
    let mut recursions = vec![LENGTH; model.recursions];
    if let RouterConfig::ExpertChoice(_) = &model.router {
        recursions = (0..3).map(|r| LENGTH * (3 - r) / 3).collect();
    }
    let known = model.router == RouterConfig::FIXED
        || (model.kv == KvMode::RecursionWise && model.router.kind() == "expert_choice");
    let plan = model.check().expect("legal");
    let recurs = plan.recursions.iter().zip(recursions);
    let inside = recurs.flat_map(|(block, rows)| vec![rows; block.len()]);
    let outside = vec![LENGTH; plan.before.len() + plan.after.len()];
    known.then(|| inside.chain(outside).collect())
}

#[test]
fn a_step_does_what_the_formula_says_and_no_more() {
    let mut combinations = vec![wide(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::None)];
    for kv in MODES {
        combinations.extend(
            RouterConfig::all().into_iter().map(|router| wide(router, kv, Sharing::MiddleCycle)),
        );
    }
    let (mut seen, mut exact) = (0, 0);
    for recipe in combinations.iter().filter(|r| r.model.check().is_ok()) {
        let what =
            format!("{:?} {:?} {:?}", recipe.model.router, recipe.model.kv, recipe.model.sharing);
        let (calls, done, formula) = count(recipe, 2);
        if let Some(rows) = rows_by_layer(recipe) {
            let width = recipe.model.heads * recipe.model.head_dim;
            let beyond = rows.iter().map(|&rows| 2.0 * attention_beyond(rows, width)).sum::<f64>();
            let expected = formula + beyond;
            assert!((done - expected).abs() < 1e-9 * expected, "{what}: {done}, not {expected}");
            exact += 1;
        }
        assert!(
            (1.0..1.08).contains(&(done / formula)),
            "{what}: {done} multiply-adds, the formula says {formula}"
        );
        let (more, ..) = count(recipe, 8);
        assert_eq!(more, calls, "{what}: operations of a step on 8 sequences, and on 2");
        seen += 1;
    }
    assert!(seen >= 8 && exact >= 5, "{seen} legal combinations, {exact} counted");
    loads_cost_the_layers_ahead_of_the_recursion();
}

/// A balance loss over several passes runs the layers ahead of the recursion once more.
fn loads_cost_the_layers_ahead_of_the_recursion() {
    let router = RouterConfig::TokenChoice(model::routers::token_choice::Config::default());
    let recipe = wide(router, KvMode::RecursionWise, Sharing::MiddleCycle);
    let ((_, at_once, _), (_, cut, _)) = (count_passes(&recipe, 2, 1), count_passes(&recipe, 2, 2));
    let plan = recipe.model.check().expect("legal");
    let formula = prelude_flops(&recipe.model, &plan, LENGTH) / 2.0 * (2 * LENGTH) as f64;
    let more = cut - at_once;
    assert!((1.0..1.08).contains(&(more / formula)), "{more} more, the formula says {formula}");
}
