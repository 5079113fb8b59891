//! Every operation keeps one contract with two bodies: the fast one equals the plain one, and its
//! gradients are those that central differences see.

mod common;

use std::sync::Arc;

use common::{Case, Dice, Matrix, Ran};
use ops::{
    Activation, ChosenWeights, Combine, GateFunction, Head, Heads, Ops, RmsNorm, Rotary, Spans,
    Tensor2, Weight, from_rows, read_rows, scale,
};
use testkit::{close, close_above, same_bits};

fn case(
    name: &str,
    inputs: Vec<Matrix>,
    weights: Vec<Matrix>,
    body: impl Fn(Ops, &[Tensor2], &[Weight]) -> Tensor2 + 'static,
) -> Case {
    Case { name: name.to_owned(), inputs, weights, body: Box::new(body) }
}

/// Operations with weights, on `t` rows.
fn weighted(t: usize) -> Vec<Case> {
    let mut dice = Dice(t as u64);
    let ids: Arc<[u32]> = (0..t).map(|_| dice.below(11)).collect();
    let targets: Arc<[u32]> = (0..t).map(|_| dice.below(13)).collect();
    // Some weights are zero, the first of several among them.
    let weights: Arc<[f32]> =
        (0..t).map(|i| if t > 1 && i % 3 == 0 { 0.0 } else { 0.1 + i as f32 }).collect();
    let d = &mut dice;
    let (rows, head) = (d.matrix(t, 5), d.matrix(13, 5));
    let (shares, twice) = (weights.clone(), weights.clone());
    vec![
        case("consistency_loss", vec![d.matrix(2 * t, 7)], vec![d.matrix(13, 7)], {
            move |o, x, w| o.consistency_loss(x[0].clone(), Head::from(&w[0]), &twice)
        }),
        case("distill_loss", vec![d.matrix(t, 7)], vec![d.matrix(13, 7)], move |o, x, w| {
            let (rows, head) = (rows.tensor(), Weight::new(head.values.clone(), 13, 5));
            let theirs = (&rows, Head::from(&head));
            o.distill_loss(x[0].clone(), Head::from(&w[0]), theirs, 1.5, &shares)
        }),
        case("scale_columns", vec![d.matrix(t, 7)], vec![d.matrix(1, 7)], |o, x, w| {
            o.scale_columns(x[0].clone(), &w[0], None)
        }),
        case(
            "scale_columns with constants",
            vec![d.matrix(t, 7)],
            vec![d.matrix(1, 7)],
            |o, x, w| {
                o.scale_columns(x[0].clone(), &w[0], Some((0..7).map(|n| 0.5 + n as f32).collect()))
            },
        ),
        case("linear", vec![d.matrix(t, 7)], vec![d.matrix(5, 7)], |o, x, w| {
            o.linear(x[0].clone(), &w[0])
        }),
        // One output, as routers have: a column's gradient is a row turned around.
        case("linear to one", vec![d.matrix(t, 7)], vec![d.matrix(1, 7)], |o, x, w| {
            o.linear(x[0].clone(), &w[0])
        }),
        case(
            "linear_add",
            vec![d.matrix(t, 7), d.matrix(t, 5)],
            vec![d.matrix(5, 7)],
            |o, x, w| o.linear_add(x[0].clone(), &w[0], x[1].clone()),
        ),
        case("embed", vec![], vec![d.matrix(11, 7)], move |o, _, w| {
            o.embed(&o.anchor(true), &w[0], &ids)
        }),
        case("rms_norm", vec![d.matrix(t, 7)], vec![d.matrix(1, 7)], |o, x, w| {
            o.rms_norm(x[0].clone(), &w[0], 1e-5, false)
        }),
        case(
            "rms_norm of a leaf in a residual",
            vec![d.matrix(t, 7)],
            vec![d.matrix(1, 7), d.matrix(7, 7)],
            |o, x, w| {
                let h = o.rms_norm(x[0].clone(), &w[0], 1e-5, true);
                o.linear_add(h, &w[1], x[0].clone())
            },
        ),
        case(
            "rms_norm in two residuals",
            vec![d.matrix(t, 7)],
            vec![d.matrix(1, 7), d.matrix(7, 7)],
            |o, x, w| {
                let mut x = scale(x[0].clone(), 1.5);
                for _ in 0..2 {
                    let h = o.rms_norm(x.clone(), &w[0], 1e-5, true);
                    x = o.linear_add(h, &w[1], x);
                }
                x
            },
        ),
        case("normalize by 1 + w", vec![d.matrix(t, 7)], vec![d.matrix(1, 7)], |o, x, w| {
            o.normalize(x[0].clone(), &w[0], PLUS_ONE)
        }),
        case("normalize some heads", vec![d.matrix(t, 11)], vec![d.matrix(1, 4)], |o, x, w| {
            o.normalize_heads(x[0].clone(), &w[0], 2, RmsNorm { plus_one: false, ..PLUS_ONE })
        }),
        case("normalize all heads", vec![d.matrix(t, 8)], vec![d.matrix(1, 4)], |o, x, w| {
            o.normalize_heads(x[0].clone(), &w[0], 2, PLUS_ONE)
        }),
        case("add_bias", vec![d.matrix(t, 7)], vec![d.matrix(1, 7)], |o, x, w| {
            o.add_bias(x[0].clone(), &w[0])
        }),
        case("capped_head_loss", vec![d.matrix(t, 7)], vec![d.matrix(13, 7)], {
            let (targets, weights) = (targets.clone(), weights.clone());
            move |o, x, w| {
                let head = Head::from(&w[0]);
                o.capped_head_loss(x[0].clone(), head, Some(0.8), &targets, &weights).0
            }
        }),
        case("head_loss", vec![d.matrix(t, 7)], vec![d.matrix(13, 7)], move |o, x, w| {
            o.head_loss(x[0].clone(), &w[0], &targets, &weights).0
        }),
    ]
}

/// Norms and heads that add a bias.
fn with_biases(t: usize) -> Vec<Case> {
    let d = &mut Dice(77 + t as u64);
    let targets: Arc<[u32]> = (0..t).map(|_| d.below(13)).collect();
    let weights: Arc<[f32]> = (0..t).map(|i| 0.1 + i as f32).collect();
    let (shares, twice) = (weights.clone(), weights.clone());
    let theirs = [d.matrix(t, 5), d.matrix(13, 5), d.matrix(1, 13)];
    let head = |d: &mut Dice| vec![d.matrix(13, 7), d.matrix(1, 13)];
    vec![
        case(
            "layer_norm of a leaf in a residual",
            vec![d.matrix(t, 7)],
            vec![d.matrix(1, 7), d.matrix(1, 7), d.matrix(7, 7)],
            |o, x, w| {
                let norm = RmsNorm { residual: true, ..PLUS_ONE };
                let h = o.layer_norm(x[0].clone(), &w[0], &w[1], norm);
                o.linear_add(h, &w[2], x[0].clone())
            },
        ),
        case(
            "layer_norm in two residuals, of more columns than lanes",
            vec![d.matrix(t, 19)],
            vec![d.matrix(1, 19), d.matrix(1, 19), d.matrix(19, 19)],
            |o, x, w| {
                let norm = RmsNorm { eps: 1e-3, plus_one: false, residual: true };
                let mut x = scale(x[0].clone(), 1.5);
                for _ in 0..2 {
                    let h = o.layer_norm(x.clone(), &w[0], &w[1], norm);
                    x = o.linear_add(h, &w[2], x);
                }
                x
            },
        ),
        case("head_loss with a bias", vec![d.matrix(t, 7)], head(d), move |o, x, w| {
            o.capped_head_loss(x[0].clone(), biased(w), None, &targets, &weights).0
        }),
        case("distill_loss with biases", vec![d.matrix(t, 7)], head(d), move |o, x, w| {
            let teacher = [theirs[1].weight(), theirs[2].weight()];
            let teacher = (&theirs[0].tensor(), biased(&teacher));
            o.distill_loss(x[0].clone(), biased(w), teacher, 1.5, &shares)
        }),
        case("consistency_loss with a bias", vec![d.matrix(2 * t, 7)], head(d), move |o, x, w| {
            o.consistency_loss(x[0].clone(), biased(w), &twice)
        }),
        case("logits with a bias", vec![d.matrix(t, 7)], head(d), |o, x, w| {
            o.logits(x[0].clone(), biased(w))
        }),
    ]
}

fn biased(of: &[Weight]) -> Head<'_> {
    Head { e_vd: &of[0], b_1v: Some(&of[1]) }
}

const PLUS_ONE: RmsNorm = RmsNorm { eps: 1e-3, plus_one: true, residual: false };

/// Spans of `t` rows over `t + 3` keys: a document boundary, a row that sees one key, one that sees
/// none.
fn spans(t: usize) -> Spans {
    let mut spans = Spans::default();
    for row in 0..t {
        let start = if row >= t / 2 { t / 2 } else { 0 };
        spans.start.push(start as u32);
        spans.end.push(if row % 5 == 3 { start as u32 } else { (row + 1 + row % 3) as u32 });
    }
    spans
}

/// Operations on rows, on `t` of them.
fn rowwise(t: usize) -> Vec<Case> {
    let d = &mut Dice(100 + t as u64);
    let rotary = Rotary::new(10_000.0, 6);
    let positions: Arc<[u32]> = (0..t).map(|_| d.below(700)).collect();
    let chosen: Arc<[u32]> = (0..t as u32 + 2).filter(|i| i % 3 != 1).collect();
    let a = chosen.len();
    let seen = Arc::new(spans(t));
    let heads = Heads::new(4, 2, 6);
    let mut cases = vec![
        case("rotate a share of each head", vec![d.matrix(t, 17)], vec![], {
            let (rotary, positions) = (Rotary::of(vec![0.3, 0.01], 1.3, 7), positions.clone());
            move |o, x, _| o.rotate(x[0].clone(), &rotary, 2, &positions)
        }),
        case("attend with a cap", vec![d.matrix(t, 24), d.matrix(t + 3, 24)], vec![], {
            let (seen, heads) = (seen.clone(), Heads { scale: Some(0.7), cap: Some(0.5), ..heads });
            move |o, x, _| o.attend(x[0].clone(), x[1].clone(), &seen, heads)
        }),
        case("attend with a key head each", vec![d.matrix(t, 24), d.matrix(t + 3, 48)], vec![], {
            let seen = seen.clone();
            move |o, x, _| o.attend(x[0].clone(), x[1].clone(), &seen, Heads::new(4, 4, 6))
        }),
        case("rotate", vec![d.matrix(t, 17)], vec![], move |o, x, _| {
            o.rotate(x[0].clone(), &rotary, 2, &positions)
        }),
        case(
            "attend with sinks",
            vec![d.matrix(t, 24), d.matrix(t + 3, 24)],
            vec![d.matrix(1, 4)],
            {
                let seen = seen.clone();
                move |o, x, w| o.attend_with_sinks(x[0].clone(), x[1].clone(), &seen, heads, &w[0])
            },
        ),
        case("attend to narrow values", vec![d.matrix(t, 24), d.matrix(t + 3, 20)], vec![], {
            let (seen, heads) = (seen.clone(), Heads { value_dim: 4, ..heads });
            move |o, x, _| o.attend(x[0].clone(), x[1].clone(), &seen, heads)
        }),
        case(
            "attend to wide values with sinks",
            vec![d.matrix(t, 24), d.matrix(t + 3, 28)],
            vec![d.matrix(1, 4)],
            {
                let (seen, heads) = (seen.clone(), Heads { value_dim: 8, ..heads });
                move |o, x, w| o.attend_with_sinks(x[0].clone(), x[1].clone(), &seen, heads, &w[0])
            },
        ),
        case("attend", vec![d.matrix(t, 24), d.matrix(t + 3, 24)], vec![], move |o, x, _| {
            o.attend(x[0].clone(), x[1].clone(), &seen, heads)
        }),
        case("columns_of", vec![d.matrix(t, 9)], vec![], |o, x, _| {
            let cut = |range| o.columns_of(x[0].clone(), range);
            ops::multiply(cut(0..4), cut(3..7))
        }),
        case("join_heads", vec![d.matrix(t, 15), d.matrix(t, 2)], vec![], |o, x, _| {
            let heads = Heads { value_dim: 2, ..Heads::new(3, 3, 5) };
            o.join_heads(x[0].clone(), x[1].clone(), heads)
        }),
        case("gated by gelu_tanh", vec![d.matrix(t, 10)], vec![], |o, x, _| {
            o.gated(x[0].clone(), GateFunction::GeluTanh)
        }),
        case("gated by gelu", vec![d.matrix(t, 10)], vec![], |o, x, _| {
            o.gated(x[0].clone(), GateFunction::Gelu)
        }),
        case("times", vec![d.matrix(t, 7)], vec![], |o, x, _| o.times(x[0].clone(), -1.7)),
        case("add_times", vec![d.matrix(t, 7), d.matrix(t, 7)], vec![], |o, x, _| {
            o.add_times(x[0].clone(), x[1].clone(), 0.4)
        }),
        case("soft_cap", vec![d.matrix(t, 7)], vec![], |o, x, _| o.soft_cap(x[0].clone(), 0.6)),
        case("swiglu", vec![d.matrix(t, 10)], vec![], |o, x, _| o.swiglu(x[0].clone())),
        case("clamped_swiglu", vec![d.matrix(t, 10)], vec![], |o, x, _| {
            o.clamped_swiglu(x[0].clone(), 0.8, 1.7)
        }),
        case("gelu", vec![d.matrix(t, 7)], vec![], |o, x, _| o.gelu(x[0].clone())),
        case("scale_rows", vec![d.matrix(t, 7), d.matrix(t, 1)], vec![], |o, x, _| {
            o.scale_rows(x[0].clone(), x[1].clone())
        }),
    ];
    let rows = chosen.clone();
    cases.push(case("gather_rows", vec![d.matrix(t + 2, 7)], vec![], move |o, x, _| {
        o.gather_rows(x[0].clone(), &rows)
    }));
    for how in [Combine::Add, Combine::Blend] {
        let (rows, name) = (chosen.clone(), format!("combine_rows {how:?}"));
        cases.push(case(
            &name,
            vec![d.matrix(t + 2, 7), d.matrix(a, 7), d.matrix(a, 1)],
            vec![],
            move |o, x, _| o.combine_rows(x[0].clone(), &rows, x[1].clone(), x[2].clone(), how),
        ));
    }
    let rows = chosen.clone();
    // The recursion's shape: rows are taken from the stream that their results join.
    cases.push(case(
        "gather and combine",
        vec![d.matrix(t + 2, 7), d.matrix(a, 1)],
        vec![d.matrix(7, 7)],
        move |o, x, w| {
            let y = o.linear(o.gather_rows(x[0].clone(), &rows), &w[0]);
            o.combine_rows(x[0].clone(), &rows, y, x[1].clone(), Combine::Blend)
        },
    ));
    cases.push(case(
        "replace_rows",
        vec![d.matrix(t + 2, 7), d.matrix(a, 7)],
        vec![],
        move |o, x, _| o.replace_rows(x[0].clone(), &chosen, x[1].clone()),
    ));
    cases
}

/// Operations of experts, on `t` rows of which each goes to two of four experts; the second one has
/// none.
fn grouped(t: usize) -> Vec<Case> {
    let d = &mut Dice(400 + t as u64);
    let of_row = |row: usize| [[0, 2], [2, 3], [0, 3]][row % 3];
    let (mut rows, mut columns, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for expert in 0..4 {
        let takes: Vec<u32> =
            (0..t as u32).filter(|row| of_row(*row as usize).contains(&expert)).collect();
        columns.extend(vec![expert as u32; takes.len()]);
        sizes.push(takes.len());
        rows.extend(takes);
    }
    let (rows, columns): (Arc<[u32]>, Arc<[u32]>) = (rows.into(), columns.into());
    let (sizes, entries): (Arc<[usize]>, usize) = (sizes.into(), rows.len());
    let positive = |mut matrix: Matrix| {
        matrix.values.iter_mut().for_each(|x| *x = 0.1 + x.abs());
        matrix
    };
    let (named, of) = (rows.clone(), sizes.clone());
    let mut cases = vec![
        case("grouped_linear", vec![d.matrix(entries, 7)], vec![d.matrix(4 * 5, 7)], {
            let sizes = sizes.clone();
            move |o, x, w| o.grouped_linear(x[0].clone(), &w[0], &sizes)
        }),
        case("rows that are named twice", vec![d.matrix(t, 7)], vec![], {
            let rows = rows.clone();
            move |o, x, _| o.gather_rows(x[0].clone(), &rows)
        }),
        // The shape of a layer of experts: gathered from rows that their results join.
        case(
            "experts",
            vec![d.matrix(t, 7), d.matrix(entries, 1)],
            vec![d.matrix(4 * 7, 7)],
            move |o, x, w| {
                let y = o.grouped_linear(o.gather_rows(x[0].clone(), &named), &w[0], &of);
                o.combine_rows(x[0].clone(), &named, y, x[1].clone(), Combine::Add)
            },
        ),
    ];
    for (normalize, least) in [(None, 0.0), (Some(0.1), 0.0), (Some(0.0), 1.0), (Some(0.0), 9.0)] {
        let how = ChosenWeights { normalize, least, scale: 1.5 };
        let (rows, columns) = (rows.clone(), columns.clone());
        cases.push(case(
            &format!("chosen_weights {normalize:?} from {least}"),
            vec![positive(d.matrix(t, 4))],
            vec![],
            move |o, x, _| o.chosen_weights(x[0].clone(), &rows, &columns, how),
        ));
    }
    cases
}

/// Operations of routers, on `t` rows.
fn routing(t: usize) -> Vec<Case> {
    let d = &mut Dice(200 + t as u64);
    let columns: Vec<u32> = (0..t).map(|_| d.below(3)).collect();
    let y: Vec<f32> = (0..t).map(|i| (i % 2) as f32).collect();
    let (weights, factors) = (d.numbers(t), d.numbers(3 * t));
    let each = weights.clone();
    let mut cases = vec![
        case("gru", vec![d.matrix(t, 9), d.matrix(t, 9), d.matrix(t, 3)], vec![], |o, x, _| {
            o.gru(x[0].clone(), x[1].clone(), x[2].clone())
        }),
        case("softmax_rows", vec![d.matrix(t, 3)], vec![], |o, x, _| {
            o.softmax_rows(x[0].clone(), 0.7)
        }),
        case("bce_with_logits", vec![d.matrix(t, 1)], vec![], move |o, x, _| {
            o.bce_with_logits(x[0].clone(), y.clone(), weights.clone())
        }),
        case("weighted_sum", vec![d.matrix(t, 3)], vec![], move |o, x, _| {
            o.weighted_sum(x[0].clone(), factors.clone())
        }),
        case("pick_columns", vec![d.matrix(t, 3)], vec![], move |o, x, _| {
            o.pick_columns(x[0].clone(), &columns)
        }),
    ];
    let entropies = each.clone();
    cases.push(case("entropy_loss", vec![d.matrix(t, 4)], vec![], move |o, x, _| {
        o.entropy_loss(x[0].clone(), entropies.clone())
    }));
    for q in [0.5, 1.0, 1.1, 2.0] {
        let each = each.clone();
        let name = format!("tsallis_loss of {q}");
        cases.push(case(&name, vec![d.matrix(t, 4)], vec![], move |o, x, _| {
            o.tsallis_loss(x[0].clone(), q, each.clone())
        }));
    }
    for columns in [1, 3] {
        let each = each.clone();
        cases.push(case(
            &format!("z_loss of {columns}"),
            vec![d.matrix(t, columns)],
            vec![],
            move |o, x, _| o.z_loss(x[0].clone(), each.clone()),
        ));
    }
    for kind in [Activation::Sigmoid, Activation::Tanh, Activation::None] {
        // Scaled outside, so that the functional differs from the identity for `None` too.
        cases.push(case(
            &format!("gate {kind:?}"),
            vec![d.matrix(t, 3)],
            vec![],
            move |o, x, _| scale(o.gate(x[0].clone(), kind, 0.6), 2.0),
        ));
    }
    cases
}

fn cases(t: usize) -> Vec<Case> {
    weighted(t)
        .into_iter()
        .chain(with_biases(t))
        .chain(rowwise(t))
        .chain(grouped(t))
        .chain(routing(t))
        .collect()
}

#[test]
fn fast_equals_plain() {
    for t in [1, 5, 33] {
        for case in cases(t) {
            let name = format!("{} on {t} rows", case.name);
            let (fast, plain) = (case.run(Ops::Fast), case.run(Ops::PLAIN));
            close(&fast.values, &plain.values, 1e-5, &name);
            let each = |of: &dyn Fn(&Ran) -> Vec<Option<Vec<f32>>>, what: &str| {
                for (i, (f, p)) in of(&fast).iter().zip(of(&plain)).enumerate() {
                    let (f, p) = (f.as_ref().expect(&name), p.expect(&name));
                    close_above(1e-3, f, &p, 1e-4, &format!("{name}, gradient of {what} {i}"));
                }
            };
            each(&|ran| ran.inputs.clone(), "input");
            each(&|ran| ran.weights.clone(), "weight");
        }
    }
}

/// What holds for the fast body holds on a device, and two runs there give the same bits.
#[cfg(feature = "gpu")]
#[test]
fn a_device_equals_plain_and_itself() {
    let device = common::on_device().expect("a build with the feature");
    for t in [1, 5, 33] {
        for case in cases(t) {
            let name = format!("{} on {t} rows", case.name);
            let (found, again, plain) = (case.run(device), case.run(device), case.run(Ops::PLAIN));
            close(&found.values, &plain.values, 1e-5, &name);
            same_bits(&found.values, &again.values, &name);
            let all = |ran: &Ran| [ran.inputs.clone(), ran.weights.clone()].concat();
            for ((f, a), p) in all(&found).iter().zip(all(&again)).zip(all(&plain)) {
                let (f, p) = (f.as_ref().expect(&name), p.expect(&name));
                close_above(1e-3, f, &p, 1e-4, &format!("{name}, a gradient"));
                same_bits(f, &a.expect(&name), &format!("{name}, a gradient"));
            }
        }
    }
}

/// Central differences of step 1e-2 in f32: within 3e-3 of the largest gradient entry (or of 0.1).
#[test]
fn fast_gradients_are_central_differences() {
    let step = 1e-2f32;
    for t in [1, 5] {
        for case in cases(t) {
            let ran = case.run(Ops::Fast);
            let check =
                |matrix: &Matrix, analytic: &[f32], what: String, at: &dyn Fn(Matrix) -> f64| {
                    let largest = analytic.iter().fold(0.1f32, |m, x| m.max(x.abs()));
                    for i in (0..analytic.len()).step_by(analytic.len().div_ceil(16).max(1)) {
                        let moved = |by: f32| {
                            let mut matrix = matrix.clone();
                            matrix.values[i] += by;
                            at(matrix)
                        };
                        let numeric =
                            ((moved(step) - moved(-step)) / (2.0 * f64::from(step))) as f32;
                        let error = (numeric - analytic[i]).abs();
                        assert!(
                            error <= 3e-3 * largest,
                            "{} on {t} rows, {what} [{i}]: {} is not {numeric}",
                            case.name,
                            analytic[i]
                        );
                    }
                };
            for (i, matrix) in case.inputs.iter().enumerate() {
                let at = |moved: Matrix| {
                    let mut inputs = case.inputs.clone();
                    inputs[i] = moved;
                    case.functional(Ops::Fast, &inputs, &case.weights)
                };
                check(matrix, ran.inputs[i].as_ref().expect("tracked"), format!("input {i}"), &at);
            }
            for (i, matrix) in case.weights.iter().enumerate() {
                let at = |moved: Matrix| {
                    let mut weights = case.weights.clone();
                    weights[i] = moved;
                    case.functional(Ops::Fast, &case.inputs, &weights)
                };
                check(
                    matrix,
                    ran.weights[i].as_ref().expect("collected"),
                    format!("weight {i}"),
                    &at,
                );
            }
        }
    }
}

#[test]
fn empty_row_sets_change_nothing() {
    let d = &mut Dice(5);
    let none: Arc<[u32]> = Arc::from([]);
    let (x, w) = (d.matrix(4, 7), d.matrix(5, 7));
    let empty = |columns: usize| from_rows(Vec::new(), 0, columns);
    let o = Ops::Fast;
    assert_eq!(o.gather_rows(x.tensor(), &none).dims(), [0, 7]);
    assert_eq!(o.linear(empty(7), &w.weight()).dims(), [0, 5]);
    assert_eq!(o.swiglu(empty(10)).dims(), [0, 5]);
    assert_eq!(o.rms_norm(empty(7), &d.matrix(1, 7).weight(), 1e-5, true).dims(), [0, 7]);
    let heads = Heads::new(2, 1, 4);
    assert_eq!(o.attend(empty(8), empty(8), &Arc::new(Spans::default()), heads).dims(), [0, 8]);
    for how in [Combine::Add, Combine::Blend] {
        same_bits(
            &read_rows(&o.combine_rows(x.tensor(), &none, empty(7), empty(1), how)),
            &x.values,
            "combine",
        );
    }
    same_bits(&read_rows(&o.replace_rows(x.tensor(), &none, empty(7))), &x.values, "replace");
    // Keys that nobody sees give zeros, and no gradient.
    let blind = Arc::new(Spans { start: vec![0; 4], end: vec![0; 4] });
    let (q, kv) = (d.matrix(4, 8), d.matrix(3, 8));
    let seen = case("attend to nothing", vec![q, kv], vec![], move |o, x, _| {
        o.attend(x[0].clone(), x[1].clone(), &blind, heads)
    });
    let ran = seen.run(Ops::Fast);
    assert!(ran.values.iter().chain(ran.inputs.iter().flatten().flatten()).all(|v| *v == 0.0));
}

#[test]
fn rows_not_named_keep_their_bits() {
    let d = &mut Dice(6);
    let rows: Arc<[u32]> = Arc::from([1, 4]);
    let (x, y, w) = (d.matrix(6, 9), d.matrix(2, 9), d.matrix(2, 1));
    for how in [Combine::Add, Combine::Blend] {
        let found =
            read_rows(&Ops::Fast.combine_rows(x.tensor(), &rows, y.tensor(), w.tensor(), how));
        for row in [0usize, 2, 3, 5] {
            same_bits(&found[row * 9..][..9], &x.values[row * 9..][..9], "an untouched row");
        }
        let old = &x.values[9..18];
        let by_hand: Vec<f32> = (0..9)
            .map(|j| match how {
                Combine::Add => old[j] + w.values[0] * y.values[j],
                Combine::Blend => old[j] + w.values[0] * (y.values[j] - old[j]),
            })
            .collect();
        close(&found[9..18], &by_hand, 1e-6, "a combined row");
    }
}

#[test]
fn head_losses_of_rows() {
    let d = &mut Dice(8);
    let (x, e) = (d.matrix(6, 7), d.matrix(13, 7));
    let targets: Arc<[u32]> = (0..6).map(|_| d.below(13)).collect();
    let weights: Arc<[f32]> = Arc::from([0.5, 0.0, 0.0, 2.0, 0.0, 1.0]);
    let (total, fast) = Ops::Fast.head_loss(x.tensor(), &e.weight(), &targets, &weights);
    let (_, plain) = Ops::PLAIN.head_loss(x.tensor(), &e.weight(), &targets, &weights);
    close(&fast, &plain, 1e-5, "losses of all rows, those of weight 0 too");
    let sum: f32 = fast.iter().zip(weights.iter()).map(|(l, w)| l * w).sum();
    close(&[ops::scalar(&total)], &[sum], 1e-6, "weighted sum");
    let mut logits = read_rows(&Ops::Fast.linear(x.tensor(), &e.weight()));
    ops::log_softmax_rows(&mut logits, 13);
    let picked: Vec<f32> = (0..6).map(|t| -logits[t * 13 + targets[t] as usize]).collect();
    close(&fast, &picked, 1e-5, "losses from log-probabilities");
    // Rows that do not count give no gradient at all.
    let (t, w) = (targets.clone(), weights.clone());
    let counted = case("head_loss", vec![x], vec![e], move |o, x, e| {
        o.head_loss(x[0].clone(), &e[0], &t, &w).0
    });
    let dx = counted.run(Ops::Fast).inputs[0].clone().expect("tracked");
    for (row, weight) in weights.iter().enumerate() {
        assert_eq!(dx[row * 7..][..7].iter().all(|g| *g == 0.0), *weight == 0.0, "row {row}");
    }
}
