//! Reading all rows of a file.

use data::documents::{Documents, Input, ReadOptions, list_files};
use std::path::Path;

/// The texts, how many rows were skipped, and the error that ended it.
pub(crate) type Read = (Vec<String>, u64, Option<String>);

pub(crate) fn read_rows(path: &Path, options: ReadOptions) -> Read {
    let mut documents = match list_files(&[Input::from(path)], &options) {
        Ok(found) => Documents::new(found.files, options),
        Err(e) => return (Vec::new(), 0, Some(e.to_string())),
    };
    let mut texts = Vec::new();
    while let Some(next) = documents.next() {
        match next {
            Ok((_, document)) => texts.push(document.text),
            Err(e) => return (texts, documents.skipped(), Some(e.to_string())),
        }
    }
    (texts, documents.skipped(), None)
}
