//! Importance matrices in the file form of llama.cpp's `llama-imatrix`: for each matrix of weights
//! the sums of squares of its input columns over the rows that met it.
//!
//! A GGUF file whose `general.type` is `imatrix`. For a tensor NAME of the model it has
//! `NAME.in_sum2`, F32 `[m, d]`, and `NAME.counts`, F32 `[m, 1]`: `m` matrices (the experts of a
//! bank, or 1) of `d` input columns. The mean of `x_j^2` is `in_sum2 / counts`. Settings:
//! `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::Gguf;
use super::types::GgmlType;
use super::write::{GgufValue, TensorToWrite, write};
use crate::error::quote;
use crate::{FormatError, Result};

const KIND: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What was seen of the inputs of one tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ImatrixEntry {
    /// Rows that met each matrix.
    pub counts: Vec<f32>,
    /// For each matrix the sums of squares of its input columns, `[m, d]`.
    pub sums: Vec<f32>,
}

/// An importance matrix: entries by the name of the model's tensor, and what they were measured on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// The texts, as they were named.
    pub datasets: Vec<String>,
    /// Windows of text that were run.
    pub chunk_count: u32,
    /// Rows of a window.
    pub chunk_size: u32,
    /// By the name of the tensor.
    pub entries: BTreeMap<String, ImatrixEntry>,
}

impl Imatrix {
    /// Writes the file beside `path` and gives it its name.
    ///
    /// # Errors
    /// An entry whose sums are no whole rows for its counts, names that are the same, a path that is
    /// taken, or what the file system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let settings = [
            (KIND.to_owned(), GgufValue::String(IMATRIX.to_owned())),
            (DATASETS.to_owned(), GgufValue::Strings(self.datasets.clone())),
            (CHUNK_COUNT.to_owned(), GgufValue::U32(self.chunk_count)),
            (CHUNK_SIZE.to_owned(), GgufValue::U32(self.chunk_size)),
        ];
        let (mut tensors, mut values) = (Vec::new(), Vec::new());
        for (name, entry) in &self.entries {
            let (m, sums) = (entry.counts.len(), entry.sums.len());
            if m == 0 || sums == 0 || !sums.is_multiple_of(m) {
                let (field, found) = (format!("importance of {}", quote(name)), sums.to_string());
                let expected = format!("sums for the columns of each of {m} matrices");
                return Err(FormatError::unwritable(path, field, expected, found));
            }
            for (suffix, shape, of) in
                [(SUMS, vec![m, sums / m], &entry.sums), (COUNTS, vec![m, 1], &entry.counts)]
            {
                tensors.push(TensorToWrite {
                    name: format!("{name}{suffix}"),
                    kind: GgmlType::F32,
                    shape,
                });
                values.push(of);
            }
        }
        write(path, &settings, &tensors, |i| {
            Ok(values[i].iter().flat_map(|value| value.to_le_bytes()).collect())
        })
    }

    /// Reads such a file, from here or from llama.cpp.
    ///
    /// # Errors
    /// What [`Gguf::open`] refuses, a GGUF file of another kind, one without entries, sums without
    /// counts or the reverse, tensors of other names, types or shapes, sums or counts that are
    /// negative or not finite, counts that are not whole, and sums without a row.
    pub fn read(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let settings = file.metadata();
        match settings.string(KIND)? {
            Some(IMATRIX) => {}
            found => {
                let found = found.map_or("none".to_owned(), quote);
                let expected = "\"imatrix\", as llama-imatrix and lathe imatrix write it";
                return Err(FormatError::unsupported(path, KIND, expected, found));
            }
        }
        let number = |key: &str| -> Result<u32> {
            let found = settings.unsigned(key)?.unwrap_or(0);
            u32::try_from(found).map_err(|_| {
                FormatError::damaged(path, key, "a number of 32 bits", found.to_string())
            })
        };
        let datasets = settings.strings(DATASETS)?.unwrap_or_default();
        let mut made = Self {
            datasets: datasets.into_iter().map(str::to_owned).collect(),
            chunk_count: number(CHUNK_COUNT)?,
            chunk_size: number(CHUNK_SIZE)?,
            entries: BTreeMap::new(),
        };
        for tensor in file.tensors() {
            if let Some(name) = tensor.name.strip_suffix(SUMS) {
                made.entries.insert(name.to_owned(), entry(path, &file, name)?);
            } else {
                // Counts without sums are an entry that lacks them.
                let name = tensor.name.strip_suffix(COUNTS);
                let with_sums = name.map(|name| format!("{name}{SUMS}"));
                let known = with_sums.is_some_and(|sums| file.tensor(&sums).is_ok());
                if !known {
                    let expected = "NAME.in_sum2 and NAME.counts for each tensor NAME";
                    return Err(FormatError::damaged(
                        path,
                        "tensors",
                        expected,
                        quote(&tensor.name),
                    ));
                }
            }
        }
        if made.entries.is_empty() {
            return Err(FormatError::damaged(path, "tensors", "at least one entry", "none"));
        }
        Ok(made)
    }
}

/// The entry of the model's tensor `name`.
fn entry(path: &Path, file: &Gguf, name: &str) -> Result<ImatrixEntry> {
    let [sums, counts] = [SUMS, COUNTS].map(|suffix| format!("{name}{suffix}"));
    let wrong = |field: &str, expected: &str, found: String| {
        Err(FormatError::damaged(path, format!("tensor {}", quote(field)), expected, found))
    };
    let Ok(of_counts) = file.tensor(&counts) else {
        return wrong(&sums, "counts beside it", format!("no {}", quote(&counts)));
    };
    let of_sums = file.tensor(&sums)?;
    for tensor in [of_sums, of_counts] {
        if tensor.kind != GgmlType::F32 {
            return wrong(&tensor.name, "F32", tensor.kind.to_string());
        }
    }
    // One matrix may have lost its axis: GGUF keeps no trailing ones.
    let m = match &of_counts.shape[..] {
        [1] => 1,
        [m, 1] => *m,
        shape => return wrong(&counts, "[m, 1]", format!("{shape:?}")),
    };
    match &of_sums.shape[..] {
        [_] if m == 1 => {}
        [rows, _] if *rows == m => {}
        shape => {
            return wrong(&sums, &format!("[{m}, d], as many as counts"), format!("{shape:?}"));
        }
    }
    let made = ImatrixEntry { counts: file.read_f32(&counts)?, sums: file.read_f32(&sums)? };
    let negative = |values: &[f32]| values.iter().copied().find(|x| *x < 0.0);
    for (name, values) in [(&sums, &made.sums), (&counts, &made.counts)] {
        if let Some(found) = negative(values) {
            return wrong(name, "no negative number", found.to_string());
        }
    }
    if let Some(found) = made.counts.iter().find(|count| count.fract() != 0.0) {
        return wrong(&counts, "whole numbers of rows", found.to_string());
    }
    let of_matrices = made.sums.chunks(made.sums.len() / m).zip(&made.counts);
    let uncounted = of_matrices
        .enumerate()
        .find(|(_, (sums, count))| **count == 0.0 && sums.iter().any(|sum| *sum > 0.0));
    if let Some((matrix, _)) = uncounted {
        let found = format!("sums above 0 for matrix {matrix}");
        return wrong(&counts, "0 only where no row came by", found);
    }
    Ok(made)
}
