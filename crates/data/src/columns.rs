//! Columns of numbers out of Parquet files that may lie.

use std::fs::File;
use std::path::Path;

use parquet::basic::Compression::{GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::guard::guarded;
use crate::parquet_pages::{Pages, check};

/// Rows that are read at a time.
const BATCH: usize = 1 << 14;
/// What a page may hold, in bytes.
const MOST_PAGE: usize = 64 << 20;
/// What a file may promise: rows, rows a byte, values of a column, values a byte.
const MOST_ROWS: i64 = NumberColumns::MOST_ROWS as i64;
const ROWS_A_BYTE: u64 = 64;
const MOST_VALUES: i64 = NumberColumns::MOST_VALUES as i64;
const VALUES_A_BYTE: u64 = 1 << 10;

/// The values of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// Whole numbers of 32 or 64 bits.
    Whole(Vec<i64>),
    /// Numbers of 32 or 64 bits with a fraction.
    Real(Vec<f32>),
}

/// A column: for each row its values. A number is a list of one, null is an empty list.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberColumn {
    /// All values, row by row.
    pub values: Numbers,
    /// Where the values of each row end.
    pub ends: Vec<usize>,
}

/// A Parquet file whose columns of numbers are read by name.
pub struct NumberColumns {
    reader: SerializedFileReader<File>,
    /// The same file, to look at its pages before they are read.
    pages: File,
}

impl NumberColumns {
    /// The most rows that a file may have.
    pub const MOST_ROWS: usize = 1 << 24;
    /// The most values that a column of a file may have, empty lists and nulls counted as one: 1
    /// GiB of memory.
    pub const MOST_VALUES: usize = 1 << 27;

    /// Opens a file that may hold anything.
    ///
    /// # Errors
    /// What is no Parquet file, or promises more than its size can hold, in words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let told = |error: std::io::Error| error.to_string();
        let file = files::open(path).map_err(told)?;
        let bytes = file.metadata().map_err(told)?.len();
        let pages = file.try_clone().map_err(told)?;
        let reader = guard(|| SerializedFileReader::new(file))?;
        let groups = reader.metadata().row_groups().iter();
        let rows = groups.map(|group| group.num_rows()).fold(0, i64::saturating_add);
        let most = MOST_ROWS.min(bytes.saturating_mul(ROWS_A_BYTE).try_into().unwrap_or(MOST_ROWS));
        if !(0..=most).contains(&rows) {
            return Err(format!("{rows} rows in {bytes} bytes, expected at most {most}"));
        }
        let most =
            MOST_VALUES.min(bytes.saturating_mul(VALUES_A_BYTE).try_into().unwrap_or(MOST_VALUES));
        let mut values: Vec<i64> = Vec::new();
        for group in reader.metadata().row_groups() {
            values.resize(values.len().max(group.num_columns()), 0);
            for (sum, column) in values.iter_mut().zip(group.columns()) {
                *sum = sum.saturating_add(column.num_values());
                if column.num_values() < 0 || *sum > most {
                    let found = column.num_values();
                    return Err(format!(
                        "{found} values of a column in {bytes} bytes, expected at most {most}"
                    ));
                }
            }
        }
        Ok(Self { reader, pages })
    }

    /// How many parts the rows are cut into.
    pub fn groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    /// How many rows a part has.
    pub fn rows(&self, group: usize) -> usize {
        usize::try_from(self.reader.metadata().row_group(group).num_rows()).unwrap_or(0)
    }

    /// What the file says of itself under `key`.
    pub fn says(&self, key: &str) -> Option<&str> {
        let all = self.reader.metadata().file_metadata().key_value_metadata()?;
        all.iter().find(|entry| entry.key == key)?.value.as_deref()
    }

    /// The names of all columns; lists have the name of their values' place behind a dot.
    pub fn names(&self) -> Vec<String> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        schema.columns().iter().map(|column| column.path().string()).collect()
    }

    /// Column `name`, of numbers or of lists of numbers, in a part; `None` where there is none.
    ///
    /// # Errors
    /// A column of another type, pages that cannot be read, in words.
    pub fn column(&self, group: usize, name: &str) -> Result<Option<NumberColumn>, String> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let is_it = |parts: &[String]| parts.first().is_some_and(|first| first == name);
        let Some(number) = schema.columns().iter().position(|c| is_it(c.path().parts())) else {
            return Ok(None);
        };
        let (column, rows) = (schema.column(number), self.rows(group));
        let (max_def, max_rep) = (column.max_def_level(), column.max_rep_level());
        if max_rep > 1 || column.path().parts().len() > 3 {
            return Err("lists of lists or of records".to_owned());
        }
        let chunk = self.reader.metadata().row_group(group).column(number);
        if !matches!(chunk.compression(), UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_)) {
            return Err(format!("values packed by {}", chunk.compression()));
        }
        check(&self.pages, &Pages::of_bytes(chunk, MOST_PAGE)?)?;
        let values = usize::try_from(chunk.num_values()).unwrap_or(0);
        let shape = Shape { rows, values, max_def, max_rep };
        let column = guard(|| {
            Ok(match self.reader.get_row_group(group)?.get_column_reader(number)? {
                ColumnReader::Int32ColumnReader(from) => {
                    shape.read(from, i64::from)?.map(Numbers::Whole)
                }
                ColumnReader::Int64ColumnReader(from) => {
                    shape.read(from, |value| value)?.map(Numbers::Whole)
                }
                ColumnReader::FloatColumnReader(from) => {
                    shape.read(from, |value| value)?.map(Numbers::Real)
                }
                ColumnReader::DoubleColumnReader(from) => {
                    shape.read(from, |value| value as f32)?.map(Numbers::Real)
                }
                _ => return Err(general("values that are no numbers")),
            })
        })?;
        if column.ends.len() != rows {
            return Err(format!("{} of {rows} rows", column.ends.len()));
        }
        Ok(Some(column))
    }
}

/// Values with the rows that they belong to.
struct Listed<T> {
    values: Vec<T>,
    ends: Vec<usize>,
}

impl<T> Listed<T> {
    fn map(self, into: impl Fn(Vec<T>) -> Numbers) -> NumberColumn {
        NumberColumn { values: into(self.values), ends: self.ends }
    }
}

/// How many rows and values there are; which levels say that a value is there or goes on a list.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    values: usize,
    max_def: i16,
    max_rep: i16,
}

impl Shape {
    fn read<D: DataType, T>(
        self,
        mut from: ColumnReaderImpl<D>,
        into: impl Fn(D::T) -> T,
    ) -> ParquetResult<Listed<T>> {
        let mut listed = Listed { values: Vec::new(), ends: Vec::new() };
        while listed.ends.len() < self.rows {
            let (mut present, mut again, mut values) = (Vec::new(), Vec::new(), Vec::new());
            let most = BATCH.min(self.rows - listed.ends.len());
            let (records, _, _) = from.read_records(
                most,
                (self.max_def > 0).then_some(&mut present),
                (self.max_rep > 0).then_some(&mut again),
                &mut values,
            )?;
            if records == 0 {
                break;
            }
            let entries = values.len().max(present.len());
            if listed.values.len() + values.len() > self.values {
                return Err(general("more values than the file says"));
            }
            let mut values = values.into_iter();
            for i in 0..entries {
                let begins = again.get(i).is_none_or(|&level| level == 0);
                if begins {
                    listed.ends.push(listed.values.len());
                }
                if present.get(i).is_none_or(|&level| level == self.max_def) {
                    let value = values.next().ok_or_else(|| general("too few values"))?;
                    listed.values.push(into(value));
                } else if !begins {
                    return Err(general("a list with a hole"));
                }
                if let Some(end) = listed.ends.last_mut() {
                    *end = listed.values.len();
                }
            }
        }
        Ok(listed)
    }
}

fn general(what: &str) -> parquet::errors::ParquetError {
    parquet::errors::ParquetError::General(what.to_owned())
}

/// The parser trusts what a file says in places; a file that lies must not end the program.
fn guard<T>(read: impl FnOnce() -> ParquetResult<T>) -> Result<T, String> {
    match guarded(read) {
        Some(result) => result.map_err(|error| error.to_string()),
        None => Err("contents that the parser cannot hold".to_owned()),
    }
}
