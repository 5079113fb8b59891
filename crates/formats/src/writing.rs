//! What writers of every form of file do.

use std::path::Path;

use crate::error::quote;
use crate::{FormatError, Result};

/// Refuses a giver whose weights do not fill their shape.
pub(crate) fn check_count(path: &Path, tensor: &str, found: usize, shape: &[usize]) -> Result<()> {
    let expected: usize = shape.iter().product();
    if found == expected {
        return Ok(());
    }
    let field = format!("tensor {}", quote(tensor));
    Err(FormatError::unwritable(
        path,
        field,
        format!("{expected} values of shape {shape:?}"),
        format!("{found}"),
    ))
}

/// A value that overflows the element type in which it is to be stored.
pub(crate) fn too_large(
    path: &Path,
    tensor: &str,
    index: usize,
    value: f32,
    kind: &str,
) -> FormatError {
    let field = format!("tensor {}[{index}]", quote(tensor));
    FormatError::unwritable(
        path,
        field,
        format!("a value within the range of {kind}"),
        value.to_string(),
    )
}
