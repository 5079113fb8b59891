//! Parquet: the text column, and the columns `source`, `license` or `licence` where they hold
//! strings.

use super::{Bad, Lost, ReadOptions, Row, Rows, too_long};
use crate::DataError;
use crate::guard::guarded;
use crate::parquet_pages::{Pages, check};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::fs::File;
use std::path::Path;

/// Cells read at a time. They share the memory of their page, but where each is written as what it
/// adds to the one before: there every cell may be as long as a page.
const BATCH: usize = 256;
const NEXT: &str = "check that the file is complete Parquet and name its text column";
const NEXT_OF_TALKS: &str =
    "name its text column, or read its conversations with data build --chat";

pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Rows, DataError> {
    let text_field = options.text_field.as_str();
    let file = files::open(path).map_err(DataError::io("read", path))?;
    let pages = file.try_clone().map_err(DataError::io("read", path))?;
    let damaged =
        |found: String| DataError::format(path, "Parquet footer", "a Parquet file", found, NEXT);
    let reader = guard(|| SerializedFileReader::new(file)).map_err(damaged)?;
    let text = column(&reader, text_field).ok_or_else(|| {
        let schema = reader.metadata().file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let expected = "a column of strings, not nested";
        let talks = !options.messages && names.iter().any(|name| name.starts_with("messages"));
        DataError::format(
            path,
            format!("column {text_field:?}"),
            expected,
            format!("columns {}", names.join(", ")),
            if talks { NEXT_OF_TALKS } else { NEXT },
        )
    })?;
    let license = column(&reader, "license").or_else(|| column(&reader, "licence"));
    let wanted = [Some(text), column(&reader, "source"), license];
    for column in wanted.into_iter().flatten() {
        check_codecs(path, &reader, column)?;
    }
    Ok(Box::new(Table {
        field: format!("column {text_field:?}"),
        reader,
        pages,
        max_row: options.max_row,
        wanted,
        batch_rows: 1,
        group: 0,
        columns: None,
        batch: Vec::new().into_iter(),
        row: 0,
        ended: false,
    }))
}

/// Refuses a file of which a column is packed in a way that is not read: that is no matter of its
/// rows.
fn check_codecs(
    path: &Path,
    reader: &SerializedFileReader<File>,
    column: usize,
) -> Result<(), DataError> {
    use parquet::basic::Compression::{GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
    for (i, group) in reader.metadata().row_groups().iter().enumerate() {
        let chunk = group.column(column);
        let found = chunk.compression();
        if !matches!(found, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_)) {
            return Err(DataError::format(
                path,
                format!("column {:?}, row group {i}: compression", chunk.column_path().string()),
                "none, snappy, gzip or zstd",
                found.to_string(),
                "write the file again with one of these",
            ));
        }
    }
    Ok(())
}

/// The parser trusts what a file says in places; a file that lies must not end the program.
fn guard<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match guarded(read) {
        Some(result) => result.map_err(|e| e.to_string()),
        None => Err("contents that the parser cannot hold".to_owned()),
    }
}

fn column(reader: &SerializedFileReader<File>, name: &str) -> Option<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    schema.columns().iter().position(|c| {
        c.path().string() == name
            && c.max_rep_level() == 0
            && c.physical_type() == parquet::basic::Type::BYTE_ARRAY
    })
}

type Cells = Vec<Option<ByteArray>>;

struct Table {
    reader: SerializedFileReader<File>,
    /// The same file, to look at its pages before they are read.
    pages: File,
    max_row: usize,
    field: String,
    /// Column numbers of text, source and licence.
    wanted: [Option<usize>; 3],
    /// Rows of the open group that are read at a time.
    batch_rows: usize,
    group: usize,
    columns: Option<[Option<(ColumnReader, i16)>; 3]>,
    batch: std::vec::IntoIter<[Option<ByteArray>; 3]>,
    row: u64,
    ended: bool,
}

impl Table {
    fn fill(&mut self) -> Result<bool, String> {
        loop {
            if self.columns.is_none() {
                if self.group == self.reader.num_row_groups() {
                    return Ok(false);
                }
                self.columns = Some(self.open_group()?);
                self.group += 1;
            }
            let Some(columns) = &mut self.columns else { return Ok(false) };
            let mut cells: [Cells; 3] = Default::default();
            for (column, cells) in columns.iter_mut().zip(&mut cells) {
                if let Some((reader, max_def)) = column {
                    let rows = self.batch_rows;
                    *cells = guard(|| read_cells(reader, *max_def, rows))?;
                }
            }
            let [text, source, license] = cells;
            if text.is_empty() {
                self.columns = None;
                continue;
            }
            for (column, cells) in columns.iter().zip([&text, &source, &license]) {
                if column.is_some() && cells.len() != text.len() {
                    return Err("columns of different lengths".to_owned());
                }
            }
            let mut source = source.into_iter();
            let mut license = license.into_iter();
            let rows: Vec<_> = text
                .into_iter()
                .map(|t| [t, source.next().flatten(), license.next().flatten()])
                .collect();
            self.batch = rows.into_iter();
            return Ok(true);
        }
    }

    fn open_group(&mut self) -> Result<[Option<(ColumnReader, i16)>; 3], String> {
        let mut columns = [None, None, None];
        self.batch_rows = BATCH;
        for (column, wanted) in columns.iter_mut().zip(self.wanted) {
            let Some(number) = wanted else { continue };
            let chunk = self.reader.metadata().row_group(self.group).column(number);
            let pages = Pages::of(chunk, self.max_row)?;
            let longest = check(&self.pages, &pages)?;
            let rows = pages.most_bytes / longest.max(1);
            self.batch_rows = self.batch_rows.min(rows).max(1);
            let max_def = self
                .reader
                .metadata()
                .file_metadata()
                .schema_descr()
                .column(number)
                .max_def_level();
            let reader =
                guard(|| self.reader.get_row_group(self.group)?.get_column_reader(number))?;
            *column = Some((reader, max_def));
        }
        Ok(columns)
    }

    fn row(&self, [text, source, license]: [Option<ByteArray>; 3]) -> Result<Row, Bad> {
        let text = text.ok_or_else(|| Bad::new(self.row, &self.field, "a string", "null"))?;
        if text.data().len() > self.max_row {
            return Err(too_long(self.row, &self.field, self.max_row));
        }
        let text = String::from_utf8(text.data().to_vec()).map_err(|e| {
            let found = format!("a broken sequence at byte {}", e.utf8_error().valid_up_to());
            Bad::new(self.row, &self.field, "UTF-8", found)
        })?;
        let (source, license) = (text_of(source), text_of(license));
        Ok(Row { number: self.row, source, license, text })
    }
}

/// The text of a cell; none where it is null, empty or no UTF-8.
fn text_of(cell: Option<ByteArray>) -> Option<String> {
    let text = String::from_utf8(cell?.data().to_vec()).ok()?;
    (!text.is_empty()).then_some(text)
}

/// Up to `most` cells, nulls included; none at the end of the row group.
fn read_cells(
    reader: &mut ColumnReader,
    max_def: i16,
    most: usize,
) -> parquet::errors::Result<Cells> {
    let ColumnReader::ByteArrayColumnReader(reader) = reader else {
        return Err(parquet::errors::ParquetError::General(
            "a column that holds no strings".to_owned(),
        ));
    };
    let mut cells = Vec::with_capacity(most);
    while cells.len() < most {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let read = reader.read_records(most - cells.len(), Some(&mut levels), None, &mut values)?;
        if read.0 == 0 {
            break;
        }
        let mut values = values.into_iter();
        if max_def == 0 {
            cells.extend(values.map(Some));
        } else {
            cells.extend(
                levels.into_iter().map(|level| if level == max_def { values.next() } else { None }),
            );
        }
    }
    Ok(cells)
}

impl Iterator for Table {
    type Item = Result<Row, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(cells) = self.batch.next() {
                self.row += 1;
                return Some(self.row(cells));
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                Err(found) => {
                    self.ended = true;
                    let mut bad = Bad::new(self.row + 1, &self.field, "readable pages", found);
                    let all = self.reader.metadata().file_metadata().num_rows();
                    let read = self.row.saturating_add(1);
                    bad.lost = Lost::Rows(u64::try_from(all).unwrap_or(0).saturating_sub(read));
                    return Some(Err(bad));
                }
            }
        }
    }
}
