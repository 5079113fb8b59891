//! The arithmetic of the rows that a bench measures, row by row at the depth and the context that
//! each had.

use std::collections::BTreeMap;

use engine::CompletedRows;
use model::cost::{head_flops, row_flops};
use model::{KvMode, Model};

/// Counts FLOPs in the full convention: every product that runs, attention over the keys that a row
/// sees, and the head for rows whose logits somebody wants.
pub(crate) struct RowWork<'a> {
    model: &'a Model,
    /// Products of a row by its depth.
    products: Vec<f64>,
    /// By request, the depth of each row so far.
    depths: BTreeMap<u64, Vec<u32>>,
    /// Sums since they were last set to 0.
    pub(crate) sums: WorkSums,
}

/// The work of rows that were completed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct WorkSums {
    /// Rows that were completed.
    pub(crate) rows: u64,
    /// Recursions that these took together.
    pub(crate) recursions: u64,
    /// FLOPs of these, without the head.
    pub(crate) flops: f64,
}

impl<'a> RowWork<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        let (config, plan) = (model.config(), model.plan());
        let most = plan.recursions.len();
        let products = (0..=most).map(|depth| row_flops(config, plan, depth)).collect();
        Self { model, products, depths: BTreeMap::new(), sums: WorkSums::default() }
    }

    /// Counts rows that a tick completed.
    pub(crate) fn add(&mut self, rows: &CompletedRows) {
        let mut all = self.depths.remove(&rows.request).unwrap_or_default();
        // Rows that run again after a preemption are work again.
        all.truncate(rows.first);
        for &depth in &rows.depths {
            all.push(depth);
            self.sums.rows += 1;
            self.sums.recursions += u64::from(depth);
            self.sums.flops += self.flops(&all);
        }
        self.depths.insert(rows.request, all);
    }

    /// FLOPs of the last of some rows of a sequence, from their depths.
    fn flops(&self, depths: &[u32]) -> f64 {
        let plan = self.model.plan();
        let own = depths.last().map_or(0, |&depth| depth as usize).min(plan.recursions.len());
        let mut keys = (plan.before.len() + plan.after.len()) * depths.len();
        for (recursion, block) in plan.recursions[..own].iter().enumerate() {
            // Shared keys and values are those of the first recursion.
            let own_keys = self.model.config().kv == KvMode::RecursionWise;
            let least = if own_keys { recursion } else { 0 };
            keys += block.len() * depths.iter().filter(|&&depth| depth as usize > least).count();
        }
        let config = self.model.config();
        // A query's product with a key, and its weight's with a value.
        let heads = config.heads();
        self.products[own] + (2 * keys * (heads.q_width() + heads.out_width())) as f64
    }

    /// FLOPs of the head for one row.
    pub(crate) fn head_flops(&self) -> f64 {
        head_flops(self.model.config(), self.model.plan())
    }
}
