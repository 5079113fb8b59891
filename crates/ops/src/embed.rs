//! Token embedding: row `ids[t]` of the table.

use std::sync::Arc;

use burn_tensor::{Int, Tensor, TensorData};
use kernels::rows::{gather_rows, scatter_add_rows};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::weight::{Codes, Sink};
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// `e_vd[ids[t], :] -> [t, d]`. `anchor` says whether the pass records (see [`Ops::anchor`]).
    /// Panics if an id is not below the vocabulary size: callers check ids where they enter.
    pub fn embed(self, anchor: &Tensor2, e_vd: &Weight, ids: &Arc<[u32]>) -> Tensor2 {
        match self {
            Ops::Fast => {
                let (codes, ids) = (e_vd.codes(), ids.clone());
                apply(Embed { e_vd: e_vd.raw(), codes, ids, sink: e_vd.sink() }, [anchor.clone()])
            }
            Ops::Plain(_) => {
                let e_vd = e_vd.plain(anchor);
                let ids = index(ids, &e_vd.device());
                e_vd.select(0, ids)
            }
        }
    }
}

/// Row numbers as an integer tensor of plain operations.
pub(crate) fn index(rows: &[u32], device: &burn_tensor::Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

#[derive(Clone, Debug)]
struct Embed {
    e_vd: Raw,
    codes: Option<Codes>,
    ids: Arc<[u32]>,
    sink: Option<Sink>,
}

impl FastOp<1> for Embed {
    type Saved = ();

    fn forward(&self, _: [Raw; 1]) -> (Raw, ()) {
        if let Some(Codes { matrix: codes, .. }) = &self.codes {
            let d = codes.shape().1;
            let mut x = buffer(self.ids.len() * d);
            self.ids
                .iter()
                .zip(x.chunks_exact_mut(d))
                .for_each(|(&id, line)| codes.row(id as usize, line));
            return (make(x, self.ids.len(), d), ());
        }
        let d = dims(&self.e_vd).1;
        let mut x = buffer(self.ids.len() * d);
        gather_rows(values(&self.e_vd), d, &self.ids, &mut x);
        (make(x, self.ids.len(), d), ())
    }

    fn backward(&self, (): (), g_td: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        if let Some(sink) = &self.sink {
            sink.with(|sum, touched| {
                if !touched {
                    sum.fill(0.0);
                }
                scatter_add_rows(sum, dims(&self.e_vd).1, &self.ids, values(&g_td));
            });
        }
        [None]
    }
}
