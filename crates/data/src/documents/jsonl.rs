//! JSON Lines, plain or packed with gzip or zstd: one object per line with the text in one field.

use super::{Bad, Packing, Row, Rows};
use crate::DataError;
use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A longer line is refused: it would have to be held in memory whole.
const MAX_LINE: u64 = 64 << 20;

pub(super) fn open(path: &Path, packing: Packing, text_field: &str) -> Result<Rows, DataError> {
    let file =
        BufReader::with_capacity(1 << 18, File::open(path).map_err(DataError::io("read", path))?);
    let lines: Box<dyn BufRead + Send> = match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file))),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file)
                .map_err(DataError::io("unpack", path))?;
            Box::new(BufReader::with_capacity(1 << 18, decoder))
        }
    };
    Ok(Box::new(Lines { lines, text_field: text_field.to_owned(), row: 0, ended: false }))
}

struct Lines {
    lines: Box<dyn BufRead + Send>,
    text_field: String,
    row: u64,
    ended: bool,
}

impl Lines {
    fn line(&mut self) -> Result<Option<Vec<u8>>, Bad> {
        loop {
            self.row += 1;
            let mut line = Vec::new();
            (&mut self.lines).take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(|e| {
                Bad::new(self.row, "line", "a readable, complete file", e.to_string()).fatal()
            })?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() as u64 > MAX_LINE {
                return Err(Bad::new(self.row, "line", "at most 64 MiB", "more").fatal());
            }
            if self.row == 1 && line.starts_with(b"\xEF\xBB\xBF") {
                line.drain(..3);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Row, Bad> {
        let text = std::str::from_utf8(line).map_err(|e| {
            let found = format!("a broken sequence at byte {} of the line", e.valid_up_to());
            Bad::new(self.row, "line", "UTF-8", found)
        })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|e| Bad::new(self.row, "line", "one JSON object", e.to_string()))?;
        let Value::Object(mut object) = value else {
            return Err(Bad::new(self.row, "line", "one JSON object", "another JSON value"));
        };
        let text = match object.remove(&self.text_field) {
            Some(Value::String(text)) => text,
            other => {
                let found = other.map_or("no such field".to_owned(), |v| shorten(&v.to_string()));
                return Err(Bad::new(
                    self.row,
                    &format!("field {:?}", self.text_field),
                    "a string",
                    found,
                ));
            }
        };
        let license =
            take_text(&mut object, "license").or_else(|| take_text(&mut object, "licence"));
        Ok(Row { source: take_text(&mut object, "source"), license, text })
    }
}

/// The value of a field that holds a string which is not empty.
fn take_text(object: &mut Map<String, Value>, name: &str) -> Option<String> {
    match object.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

impl Iterator for Lines {
    type Item = Result<Row, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.line() {
            Ok(None) => {
                self.ended = true;
                None
            }
            Ok(Some(line)) => Some(self.parse(&line)),
            Err(bad) => {
                self.ended = true;
                Some(Err(bad))
            }
        }
    }
}
