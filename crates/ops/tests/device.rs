//! What plain operations on a device share with the processors: weights that change, rows that are
//! written, keys and values in pages, and losses that ask the processors.
#![cfg(feature = "gpu")]

mod common;

use std::sync::Arc;

use common::{Dice, on_device};
use ops::formulas::{IA3_VECTOR, VectorFactors};
use ops::{
    AdamW, AdaptedWeight, AdapterLeaf, BalancePool, Device, DeviceName, Heads, KvFormat, KvStore,
    Moments, Ops, PAGE, PageView, PoolShare, Tensor2, backward, gradient, leaf, read_rows,
    write_rows,
};
use testkit::{close, same_bits};

fn device() -> Ops {
    on_device().expect("a build with the feature")
}

#[test]
fn a_weight_that_changes_is_another_on_the_device() {
    let (o, d) = (device(), &mut Dice(1));
    let (x, w) = (d.matrix(3, 4), d.matrix(5, 4));
    let weight = w.weight();
    let product = |ops: Ops| ops.linear(leaf(&x.tensor_of(ops)), &weight);
    let mut moments = Moments::of(&weight);
    let mut before = Vec::new();
    for _ in 0..3 {
        let y = product(o);
        let values = read_rows(&y);
        let gradients = backward(&o.weighted_sum(y, vec![1.0; 15]));
        weight.take_plain_gradient(&gradients);
        assert!(values != before, "the values of the step before");
        close(&values, &read_rows(&product(Ops::PLAIN)), 1e-5, "a product");
        before = values;
        weight.adamw(&AdamW { lr: 0.1, ..adamw() }, 1.0, &mut moments);
    }
    // A weight without gradients keeps one copy there, until it is written.
    weight.collect_gradient(false);
    same_bits(&read_rows(&product(o)), &read_rows(&product(o)), "unchanged");
    weight.write(vec![0.0; 20]);
    assert!(read_rows(&product(o)).iter().all(|y| *y == 0.0));
}

fn adamw() -> AdamW {
    AdamW { lr: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, step: 1 }
}

#[test]
fn rows_go_to_where_they_are_written() {
    let (o, d) = (device(), &mut Dice(2));
    let (store, rows) = (d.matrix(6, 4), d.matrix(2, 4));
    let mut expected = store.values.clone();
    expected[12..20].copy_from_slice(&rows.values);
    for of in [o, Ops::PLAIN] {
        let found = write_rows(store.tensor_of(of), 3, &rows.tensor_of(o));
        same_bits(&read_rows(&found), &expected, "a store with two rows");
    }
}

#[test]
fn pages_in_the_memory_of_the_processors_are_attended_to() {
    let (o, d, heads) = (device(), &mut Dice(3), Heads::new(4, 2, 8));
    let (kv, q) = (d.matrix(20, 32), d.matrix(3, 32));
    let run = |ops: Ops| {
        let store = KvStore::new(KvFormat::F32, heads, 4);
        let places: Vec<u32> = (0..20).map(|i| 2 * PAGE as u32 - 10 + i).collect();
        store.write(&places, &kv.tensor_of(ops));
        let view = PageView {
            store,
            pages: Arc::from([1, 2]),
            first: Arc::from([0, 0, 0]),
            count: Arc::from([PAGE as u32, PAGE as u32 + 3, 0]),
            skip: Arc::from([PAGE as u32 - 10, PAGE as u32 - 10, 0]),
        };
        read_rows(&ops.attend_pages(q.tensor_of(ops), &view, heads))
    };
    close(&run(o), &run(Ops::PLAIN), 1e-5, "attention over pages");
}

#[test]
fn losses_over_all_layers_ask_the_processors() {
    let d = &mut Dice(4);
    let shares = [d.matrix(6, 3), d.matrix(6, 3)];
    let run = |ops: Ops| -> Vec<Vec<f32>> {
        let pool = BalancePool::default();
        let leaves: Vec<Tensor2> = shares.iter().map(|x| leaf(&x.tensor_of(ops))).collect();
        let mut losses = Vec::new();
        for (layer, x) in leaves.iter().enumerate() {
            let share = PoolShare { layer, recursion: 0, loads: vec![1, 2, 3 + layer as u64] };
            losses.push(ops.pooled_balance(x.clone(), share, &pool));
        }
        let loss = ops::add_scalars(losses);
        let gradients = backward(&loss);
        let mut all = vec![read_rows(&loss)];
        all.extend(leaves.iter().map(|x| read_rows(&gradient(x, &gradients).expect("tracked"))));
        all
    };
    for (found, expected) in run(device()).iter().zip(run(Ops::Fast)) {
        close(found, &expected, 1e-6, "a loss over layers");
    }
}

/// The merged matrix is made by the processors, and so are the gradients of what it is made of.
#[test]
fn adapted_matrices_learn_as_on_the_processors() {
    let d = &mut Dice(5);
    let (x, w, vector) = (d.matrix(3, 4), d.matrix(5, 4), d.matrix(1, 5));
    let run = |ops: Ops| -> Vec<Vec<f32>> {
        let (x, base, numbers) = (leaf(&x.tensor_of(ops)), w.weight(), Arc::new(vector.weight()));
        let vector = numbers.read().into_iter().map(f64::from).collect();
        let change = VectorFactors { vector, inputs: false };
        let adapted = Arc::new(AdaptedWeight::new(Box::new(change), &base));
        let leaves = [AdapterLeaf { name: IA3_VECTOR, weight: numbers.clone() }];
        let y = ops.adapted(x.clone(), None, &base, &adapted, &leaves);
        let mut all = vec![read_rows(&y)];
        let gradients = backward(&ops.weighted_sum(y, (0..15).map(|i| i as f32).collect()));
        all.push(read_rows(&gradient(&x, &gradients).expect("tracked")));
        for weight in [&base, &*numbers] {
            weight.take_plain_gradient(&gradients);
            all.push(weight.read_gradient().expect("reached"));
        }
        all
    };
    for (found, expected) in run(device()).iter().zip(run(Ops::Fast)) {
        close(found, &expected, 1e-5, "a product, or a gradient");
    }
}

#[test]
fn devices_that_are_not_there_are_told() {
    let name: DeviceName = "gpu:99".parse().expect("a name");
    let error = Device::open(name).expect_err("so many").to_string();
    assert!(error.contains("gpu:99") && error.contains("counted from 0"), "{error}");
    let known = device().device();
    assert_eq!(Device::open(known.name()), Ok(known), "opened twice");
    // What panics under the guard is an error with the device's name.
    let stopped = known.guard(|| panic!("the driver said no")).map(|()| "nothing");
    let error = stopped.expect_err("a panic").to_string();
    assert!(error.contains(&known.name().to_string()), "{error}");
    assert!(error.contains("the driver said no"), "{error}");
}
