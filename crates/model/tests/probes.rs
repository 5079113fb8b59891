//! What a probe is shown of a pass: the stream ahead of each element of the model, and last what
//! the head sees.

use model::{KvMode, Model, ModelConfig, Probe, RouterConfig, Rows, Rule, Sharing};
use ops::{Tensor2, read_rows};
use testkit::{How, fresh, ids, run, tiny, transient};

const LENGTH: usize = 12;

/// All the streams of a pass, in their order.
#[derive(Default)]
struct Streams(Vec<Vec<f32>>);

impl Probe for Streams {
    fn stream(&mut self, x_td: &Tensor2) {
        self.0.push(read_rows(x_td));
    }
}

/// One layer, then two shared ones three times, then one.
fn model(router: &str) -> Model {
    let router: RouterConfig = serde_json::from_value(serde_json::json!({ "kind": router }))
        .unwrap_or_else(|error| panic!("{router}: {error}"));
    let config = tiny(router, KvMode::RecursionWise, Sharing::MiddleCycle);
    fresh(&ModelConfig { layers: 8, ..config }, 1)
}

fn streams(model: &Model) -> Vec<Vec<f32>> {
    let mut seen = Streams::default();
    let rows = Rows::batch(1, LENGTH);
    let how = How::by(&Rule::NonCausal);
    run(model, &ids(1, LENGTH), &rows, &mut transient(model), &how, &mut seen);
    seen.0
}

#[test]
fn a_probe_sees_the_stream_before_each_element() {
    // Without a choice each use of a layer is an element; with one a whole recursion is, and a
    // router that decides once makes all recursions one element.
    for (router, elements) in [("fixed", 8), ("expert_choice", 5), ("token_choice", 3)] {
        let model = model(router);
        let seen = streams(&model);
        assert_eq!(seen.len(), elements + 1, "{router}: elements and what the head sees");
        for (i, pair) in seen.windows(2).enumerate() {
            assert_eq!(pair[0].len(), LENGTH * model.config().width, "{router}, element {i}");
            assert_ne!(pair[0], pair[1], "{router}: element {i} changes the stream");
        }
    }
}
