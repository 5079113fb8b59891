//! One decoder layer: attention, then an MLP, each with its norms and its residual sum, and what
//! changes the stream behind the layer where the model has such a thing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ops::Tensor2;

use crate::adapters::member::StreamAdapter;
use crate::attention::Attention;
use crate::carry::Carry;
use crate::context::LayerContext;
use crate::kv::PassCache;
use crate::mlp::Mlp;
use crate::norm::{Join, Norm};
use crate::pass::{NoProbe, Pass, Recorded};

/// The weights of one stored layer and what it takes to run them.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention: Attention,
    /// Ahead of the MLP, where there is one.
    pub(crate) mlp_norm: Option<Norm>,
    pub(crate) mlp: Box<dyn Mlp>,
    pub(crate) mlp_join: Join,
    /// What changes the stream behind this layer; mostly nothing.
    pub(crate) behind: Option<Arc<dyn StreamAdapter>>,
}

impl Block {
    /// The layer on the rows of `context`.
    pub(crate) fn forward(
        self: &Arc<Self>,
        x_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        // What rows carry to later layers is kept in any case, so nothing would be saved.
        let again = context.pass.recompute && !self.mlp.carries();
        if again { self.again(x_td, context) } else { self.run(x_td, context) }
    }

    fn run(&self, x_td: Tensor2, context: &mut LayerContext<'_, '_>) -> Tensor2 {
        let x_td = self.attention.forward(x_td, context);
        let h_td = match &self.mlp_norm {
            Some(norm) => norm.forward(x_td.clone(), context.at, context.pass.ops),
            None => x_td.clone(),
        };
        let x_td = if self.mlp_join.is_sum() {
            self.mlp.forward(h_td, x_td, context)
        } else {
            let y_td = self.mlp.forward(h_td, ops::zeros_like(&x_td), context);
            self.mlp_join.add(x_td, y_td, context.at, context.pass.ops)
        };
        match &self.behind {
            Some(behind) => behind.run(x_td, context.at, context.pass.ops),
            None => x_td,
        }
    }

    /// The layer with only its input kept, to be run again in the backward pass. What the first run
    /// tells its probe is told once; the second tells nobody.
    fn again(self: &Arc<Self>, x_td: Tensor2, context: &mut LayerContext<'_, '_>) -> Tensor2 {
        let pass = &mut *context.pass;
        let told = Arc::new(Mutex::new(Recorded::default()));
        let piece = {
            let block = self.clone();
            let told = told.clone();
            let first = AtomicBool::new(true);
            let (rows, at) = (context.rows.clone(), context.at.clone());
            let (rule, state) = (pass.rule.clone(), pass.state.clone());
            let (ops, address) = (pass.ops, pass.address);
            let (record, sequences) = (pass.record, pass.sequences);
            let (loads, pool) = (pass.loads.to_vec(), pass.pool.clone());
            move |x_td| {
                let mut recorded = Recorded::default();
                let again = !first.swap(false, Ordering::Relaxed);
                let mut inner = Pass {
                    ops,
                    kv: &mut PassCache::new(false),
                    rule: &rule,
                    state: &state,
                    probe: if again { &mut NoProbe } else { &mut recorded },
                    record,
                    recompute: false,
                    address,
                    sequences,
                    loads: &loads,
                    pool: pool.clone(),
                };
                let mut context = LayerContext {
                    pass: &mut inner,
                    rows: &rows,
                    at: &at,
                    carry: &mut Carry::default(),
                };
                let y_td = block.run(x_td, &mut context);
                if !again {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = recorded;
                }
                y_td
            }
        };
        let y_td = pass.ops.recompute(x_td, Arc::new(piece));
        let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        told.tell(pass.probe);
        y_td
    }
}
