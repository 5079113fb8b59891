//! A trainable matrix: its value, the buffer its gradient accumulates in, and a packed copy for
//! inference.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use burn_tensor::Gradients;
use kernels::matmul::{Mat, Packed};
pub use kernels::quant::{Element, Format, QuantError, Quantized, StoredPart};
pub use kernels::rows::SQUARES_CHUNK;

use crate::seam::{self, Raw};
use crate::{Tensor2, tensor};

/// Where a weight's gradient accumulates over all its uses and micro-batches of a step. Products
/// add into it directly, so a block that is applied many times costs no extra additions on the
/// tape.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) values: Vec<f32>,
    pub(crate) touched: bool,
}

/// Shared handle to a gradient buffer.
#[derive(Clone, Debug)]
pub(crate) struct Sink(pub(crate) Arc<Mutex<Sum>>);

impl Sink {
    /// Hands the buffer to `add` together with whether it already holds something (else `add` must
    /// overwrite it).
    pub(crate) fn with(&self, add: impl FnOnce(&mut [f32], bool)) {
        let mut sum = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let touched = std::mem::replace(&mut sum.touched, true);
        add(&mut sum.values, touched);
    }

    /// Adds `values` to the buffer.
    pub(crate) fn add(&self, values: &[f32]) {
        self.with(|sum, touched| {
            if touched { kernels::rows::add_into(sum, values) } else { sum.copy_from_slice(values) }
        });
    }
}

/// A matrix `[rows, columns]` of the model. Cheap to share; updated in place between passes.
#[derive(Debug)]
pub struct Weight {
    shape: (usize, usize),
    value: RwLock<Tensor2>,
    sink: RwLock<Option<Sink>>,
    /// The tracked twin that plain operations read during one pass.
    leaf: Mutex<Option<Tensor2>>,
    /// The values on another device than the processors, while they are the same.
    elsewhere: Mutex<Option<Tensor2>>,
    packed: RwLock<Option<PackedHandle>>,
    /// Rounded values in place of the f32 ones, which are then gone.
    quantized: RwLock<Option<Codes>>,
    /// How often the values have become others.
    changes: AtomicU64,
}

/// Shared handle to a transpose in panels, made on first use.
#[derive(Clone, Default)]
pub(crate) struct PackedHandle(Arc<OnceLock<Packed>>);

impl PackedHandle {
    /// The panels, of a handle out of [`Weight::packed`].
    pub(crate) fn get(&self) -> &Packed {
        self.0.get().expect("a handle is given out when its panels are made")
    }
}

impl std::fmt::Debug for PackedHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("packed weight")
    }
}

/// Shared handle to rounded values.
#[derive(Clone)]
pub(crate) struct Codes {
    pub(crate) matrix: Arc<Quantized>,
    /// Whether products take the values as they are, and have gradients.
    pub(crate) exact: bool,
}

impl std::fmt::Debug for Codes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} weight", self.matrix.format())
    }
}

/// The values of a weight as they were at one time, row after row. Holds no copy of values that are
/// kept in f32.
pub struct Values(Kept);

enum Kept {
    Shared(Raw),
    Own(Vec<f32>),
}

impl std::ops::Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Kept::Shared(raw) => seam::values(raw),
            Kept::Own(values) => values,
        }
    }
}

impl Weight {
    /// Takes over `values`, `rows` x `columns`, row after row. Panics if the count is wrong.
    pub fn new(values: Vec<f32>, rows: usize, columns: usize) -> Self {
        Self {
            shape: (rows, columns),
            value: RwLock::new(tensor::from_rows(values, rows, columns)),
            sink: RwLock::new(None),
            leaf: Mutex::new(None),
            elsewhere: Mutex::new(None),
            packed: RwLock::new(None),
            quantized: RwLock::new(None),
            changes: AtomicU64::new(0),
        }
    }

    /// Rounds the values to `format` and gives up the f32 ones: for inference only. Until the next
    /// [`Weight::write`] all operations compute with the rounded values.
    ///
    /// # Errors
    /// A format that does not fit the matrix, or values that cannot be rounded.
    pub fn quantize(&self, format: Format) -> Result<(), QuantError> {
        let codes = Quantized::new(format, &self.read(), self.shape.0, self.shape.1)?;
        self.keep_codes(codes, false);
        Ok(())
    }

    /// The same for a matrix of a layer that stays as it is while others learn: products take the
    /// rounded values as they are, to the bit as f32 ones, and hand gradients on to their rows.
    ///
    /// # Errors
    /// As [`Weight::quantize`].
    pub fn freeze_rounded(&self, format: Format) -> Result<(), QuantError> {
        let codes = Quantized::new(format, &self.read(), self.shape.0, self.shape.1)?;
        self.keep_codes(codes, true);
        Ok(())
    }

    /// What [`Weight::freeze_rounded`] made and [`Weight::parts`] took apart, in the place of the
    /// values.
    ///
    /// # Errors
    /// Parts that are not those of such a matrix in `format`.
    pub fn freeze_parts(&self, format: Format, parts: &[&[u8]]) -> Result<(), QuantError> {
        let codes = Quantized::from_parts(format, self.shape.0, self.shape.1, parts)?;
        self.keep_codes(codes, true);
        Ok(())
    }

    /// Puts `codes` in the place of the values: for inference only.
    ///
    /// # Errors
    /// Codes of a matrix of another shape.
    pub fn put_codes(&self, codes: Quantized) -> Result<(), QuantError> {
        let ((n, d), found) = (self.shape, codes.shape());
        for (what, expected, found) in
            [("rows of codes", n, found.0), ("columns of codes", d, found.1)]
        {
            if expected != found {
                return Err(QuantError::Length { what, n, d, expected, found });
            }
        }
        self.keep_codes(codes, false);
        Ok(())
    }

    fn keep_codes(&self, codes: Quantized, exact: bool) {
        self.collect_gradient(false);
        self.forget_copies();
        *self.value.write().expect("weight lock") = tensor::from_rows(Vec::new(), 0, 0);
        let codes = Codes { matrix: Arc::new(codes), exact };
        *self.quantized.write().expect("weight lock") = Some(codes);
    }

    /// A matrix that [`Weight::quantize`] rounded and [`Weight::parts`] took apart: the same bits,
    /// without the f32 values.
    ///
    /// # Errors
    /// Parts that are not those of such a matrix in `format`.
    pub fn from_parts(
        format: Format,
        rows: usize,
        columns: usize,
        parts: &[&[u8]],
    ) -> Result<Self, QuantError> {
        let codes = Quantized::from_parts(format, rows, columns, parts)?;
        let empty = Self::new(Vec::new(), 0, 0);
        Ok(Self {
            shape: (rows, columns),
            quantized: RwLock::new(Some(Codes { matrix: Arc::new(codes), exact: false })),
            ..empty
        })
    }

    /// What it is rounded to, if it is.
    pub fn format(&self) -> Option<Format> {
        self.codes().map(|codes| codes.matrix.format())
    }

    /// The rounded values as files hold them: the bytes of each [`StoredPart`] of its format;
    /// `None` if this weight is not rounded.
    pub fn parts(&self) -> Option<Vec<Vec<u8>>> {
        self.codes().map(|codes| codes.matrix.parts())
    }

    /// Bytes of the values as they are kept now (packed copies aside).
    pub fn bytes(&self) -> usize {
        self.codes().map_or(self.shape.0 * self.shape.1 * 4, |codes| codes.matrix.bytes())
    }

    pub(crate) fn codes(&self) -> Option<Codes> {
        self.quantized.read().expect("weight lock").clone()
    }

    /// Rows, then columns, as [`Weight::new`] was given them.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// How often the values have become others: what is made of them holds while this stays.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// A copy of the values, row after row.
    pub fn read(&self) -> Vec<f32> {
        match self.values().0 {
            Kept::Shared(raw) => seam::values(&raw).to_vec(),
            Kept::Own(values) => values,
        }
    }

    /// A look at the values without a copy. While it is held, an update copies them first.
    pub fn values(&self) -> Values {
        Values(match self.codes() {
            Some(codes) => Kept::Own(codes.matrix.dequantize()),
            None => Kept::Shared(self.raw()),
        })
    }

    /// Replaces the values. Panics if the count is wrong.
    pub fn write(&self, values: Vec<f32>) {
        *self.value.write().expect("weight lock") =
            tensor::from_rows(values, self.shape.0, self.shape.1);
        *self.quantized.write().expect("weight lock") = None;
        self.forget_copies();
    }

    /// Starts collecting gradients (training), or stops (frozen, inference).
    pub fn collect_gradient(&self, yes: bool) {
        *self.sink.write().expect("weight lock") = yes.then(|| {
            let values = vec![0.0; self.shape.0 * self.shape.1];
            Sink(Arc::new(Mutex::new(Sum { values, touched: false })))
        });
    }

    /// The f32 values as they are now, which are not copied, and a gradient buffer of its own where
    /// this one has one. While it lives, an update of this one copies the values first.
    pub fn twin(&self) -> Self {
        let twin = Self {
            value: RwLock::new(self.value.read().expect("weight lock").clone()),
            shape: self.shape,
            ..Self::new(Vec::new(), 0, 0)
        };
        twin.collect_gradient(self.collects_gradient());
        twin
    }

    /// Whether gradients are being collected.
    pub fn collects_gradient(&self) -> bool {
        self.sink.read().expect("weight lock").is_some()
    }

    /// Keeps a panel-ordered copy from now on, which [`crate::Ops::linear`] and
    /// [`crate::Ops::grouped_linear`] read: same bits, streams at memory speed for few rows. Any
    /// update drops it.
    pub fn pack(&self) {
        if self.codes().is_some() {
            return;
        }
        *self.packed.write().expect("weight lock") = Some(PackedHandle::default());
    }

    /// Drops every copy of the values, which are about to be others.
    fn forget_copies(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        *self.packed.write().expect("weight lock") = None;
        *self.leaf.lock().expect("weight lock") = None;
        *self.elsewhere.lock().expect("weight lock") = None;
    }

    /// The packed transpose, made on first use, if packing was asked for.
    pub(crate) fn packed(&self) -> Option<PackedHandle> {
        let packed = self.packed.read().expect("weight lock").clone()?;
        packed.0.get_or_init(|| {
            let raw = self.raw();
            Packed::new(Mat::rows_major(seam::values(&raw), self.shape.0, self.shape.1).t())
        });
        Some(packed)
    }

    /// The gradient of this step so far, or `None` if nothing reached this weight.
    pub fn read_gradient(&self) -> Option<Vec<f32>> {
        let sink = self.sink()?;
        let sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sum.touched.then(|| sum.values.clone())
    }

    /// Sum of the squared gradient entries (0 if nothing arrived).
    pub fn gradient_square(&self) -> f64 {
        self.sink().map_or(0.0, |sink| {
            let sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if sum.touched { kernels::rows::sum_of_squares(&sum.values) } else { 0.0 }
        })
    }

    /// What [`Weight::gradient_square`] adds up, of the gradient entries in `range`, which begins
    /// at a multiple of [`SQUARES_CHUNK`] and ends at one or with the gradient. Panics outside.
    pub fn gradient_squares(&self, range: Range<usize>) -> Vec<f64> {
        let chunks = range.len().div_ceil(SQUARES_CHUNK);
        self.sink().map_or(Vec::new(), |sink| {
            let sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match sum.touched {
                true => kernels::rows::chunks_of_squares(&sum.values[range]),
                false => vec![0.0; chunks],
            }
        })
    }

    /// Moves the gradient behind the values of `flat`, zeros if nothing arrived, and counts the
    /// buffer as empty. Nothing happens where no gradient is collected.
    pub fn move_gradient(&self, flat: &mut Vec<f32>) {
        let Some(sink) = self.sink() else { return };
        let mut sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::take(&mut sum.touched) {
            flat.extend_from_slice(&sum.values);
        } else {
            flat.resize(flat.len() + sum.values.len(), 0.0);
        }
    }

    /// Puts `values` in the place of the gradient's entries from `start` on. Entries that were not
    /// put since the buffer was empty mean nothing. Nothing happens where no gradient is collected;
    /// panics outside of it.
    pub fn put_gradient(&self, start: usize, values: &[f32]) {
        let Some(sink) = self.sink() else { return };
        let mut sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sum.values[start..start + values.len()].copy_from_slice(values);
        sum.touched = true;
    }

    /// Forgets the gradient; a step that is left out must not leak into the next.
    pub fn clear_gradient(&self) {
        if let Some(sink) = self.sink() {
            sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).touched = false;
        }
        *self.leaf.lock().expect("weight lock") = None;
    }

    /// After a backward over plain operations: moves what Burn's tape found into this weight's
    /// buffer.
    pub fn take_plain_gradient(&self, gradients: &Gradients) {
        let leaf = self.leaf.lock().expect("weight lock").take();
        if let (Some(leaf), Some(sink)) = (leaf, self.sink())
            && let Some(found) = leaf.grad(gradients)
        {
            sink.add(&tensor::read_rows(&found));
        }
    }

    /// The matrix as a tensor of plain operations, where `like` is: tracked if gradients are
    /// collected.
    pub(crate) fn plain(&self, like: &Tensor2) -> Tensor2 {
        let mut leaf = self.leaf.lock().expect("weight lock");
        let here = like.device().without_autodiff();
        if leaf.as_ref().is_some_and(|leaf| leaf.device().without_autodiff() != here) {
            *leaf = None;
        }
        if let Some(codes) = self.codes() {
            return leaf
                .get_or_insert_with(|| {
                    let (rows, columns) = self.shape;
                    tensor::beside(
                        tensor::from_rows(codes.matrix.dequantize(), rows, columns),
                        like,
                    )
                })
                .clone();
        }
        if self.sink().is_none() {
            return self.beside(like);
        }
        leaf.get_or_insert_with(|| tensor::leaf(&self.beside(like))).clone()
    }

    /// The values where `like` is, copied there once.
    fn beside(&self, like: &Tensor2) -> Tensor2 {
        let here = like.device().without_autodiff();
        let value = self.value.read().expect("weight lock").clone();
        if value.device() == here {
            return value;
        }
        let mut elsewhere = self.elsewhere.lock().expect("weight lock");
        match &*elsewhere {
            Some(copy) if copy.device() == here => copy.clone(),
            _ => elsewhere.insert(tensor::beside(value, like)).clone(),
        }
    }

    pub(crate) fn raw(&self) -> Raw {
        seam::raw(&self.value.read().expect("weight lock"))
    }

    pub(crate) fn sink(&self) -> Option<Sink> {
        self.sink.read().expect("weight lock").clone()
    }

    /// Lets `change` overwrite the values with the gradient at hand; the buffer counts as empty
    /// afterwards. A weight that nothing reached is handed a zero gradient, as optimizers with
    /// decay expect.
    pub(crate) fn update(&self, change: impl FnOnce(&mut [f32], &[f32])) {
        let Some(sink) = self.sink() else { return };
        let mut sum = sink.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !sum.touched {
            sum.values.fill(0.0);
        }
        let mut slot = self.value.write().expect("weight lock");
        let value = std::mem::replace(&mut *slot, tensor::from_rows(Vec::new(), 0, 0));
        let mut raw = seam::into_raw(value);
        change(seam::values_mut(&mut raw), &sum.values);
        *slot = seam::wrap(raw);
        sum.touched = false;
        drop(slot);
        self.forget_copies();
    }
}
