//! Plain text: a file is one document, cut at line ends where it is long and at lines that hold
//! only `<|endoftext|>`.

use super::{Bad, Row, Rows};
use crate::DataError;
use crate::tokenizer::END_OF_TEXT;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

pub(super) fn open(path: &Path, document_bytes: usize) -> Result<Rows, DataError> {
    let file = files::open(path).map_err(DataError::io("read", path))?;
    Ok(Box::new(Pieces {
        file: BufReader::new(file),
        held: Vec::new(),
        document_bytes,
        row: 0,
        ended: false,
    }))
}

struct Pieces {
    file: BufReader<File>,
    /// A line already read that starts the next document.
    held: Vec<u8>,
    document_bytes: usize,
    row: u64,
    ended: bool,
}

impl Pieces {
    /// Bytes of the next document; empty between two separators.
    fn piece(&mut self) -> std::io::Result<Vec<u8>> {
        let mut piece = std::mem::take(&mut self.held);
        loop {
            let mut line = Vec::new();
            (&mut self.file).take(self.document_bytes as u64).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                self.ended = true;
                return Ok(piece);
            }
            if line.trim_ascii() == END_OF_TEXT.as_bytes() {
                return Ok(piece);
            }
            if !piece.is_empty() && piece.len() + line.len() > self.document_bytes {
                self.held = line;
                self.hold_open_character(&mut piece);
                return Ok(piece);
            }
            piece.extend_from_slice(&line);
        }
    }

    /// Where a line was longer than a document, its cut may lie inside a character: that goes to
    /// the next document.
    fn hold_open_character(&mut self, piece: &mut Vec<u8>) {
        if let Err(e) = std::str::from_utf8(piece)
            && e.error_len().is_none()
        {
            let open = piece.split_off(e.valid_up_to());
            self.held.splice(0..0, open);
        }
    }
}

impl Iterator for Pieces {
    type Item = Result<Row, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        self.row += 1;
        let mut piece = match self.piece() {
            Ok(piece) => piece,
            Err(e) => {
                self.ended = true;
                return Some(Err(
                    Bad::new(self.row, "text", "a readable file", e.to_string()).fatal()
                ));
            }
        };
        if self.ended && self.row > 1 && piece.is_empty() {
            // Nothing is behind the last separator.
            return None;
        }
        if self.row == 1 {
            files::skip_mark(&mut piece);
        }
        Some(match String::from_utf8(piece) {
            Ok(text) => Ok(Row { number: self.row, source: None, license: None, text }),
            Err(e) => {
                let at = e.utf8_error().valid_up_to();
                Err(Bad::new(
                    self.row,
                    "text",
                    "UTF-8",
                    format!("a broken sequence at byte {at} of the document"),
                ))
            }
        })
    }
}
