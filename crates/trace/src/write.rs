//! A trace as a Parquet file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::NumberColumns;
use files::NewFile;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::TraceError;
use crate::read::MOST_TARGETS;
use crate::table::{RoutingDecision, TokenFacts, Trace};

/// The columns, in this order.
const SCHEMA: &str = "message routing {
    optional int64 step;
    required int64 sequence;
    required int32 position;
    required int32 token;
    optional int32 layer;
    required int32 recursion;
    required group targets (LIST) { repeated group list { required int32 element; } }
    required group weights (LIST) { repeated group list { required float element; } }
    required group dropped (LIST) { repeated group list { required int32 element; } }
    optional float loss;
    optional int32 source;
}";
/// Under this name the file's metadata says what each router decides among.
pub(crate) const SITES: &str = "lathe.sites";
/// Under these names it has the texts of tokens and the names of sources.
pub(crate) const TEXTS: &str = "lathe.texts";
pub(crate) const SOURCES: &str = "lathe.sources";
/// Decisions of a row group.
const GROUP: usize = 1 << 18;
/// What a file may hold, so that it can be read again.
const MOST: Held = Held { rows: NumberColumns::MOST_ROWS, values: NumberColumns::MOST_VALUES };

/// Rows, and entries of their longest column of lists, of which an empty list has one.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    rows: usize,
    values: usize,
}

impl Held {
    /// With one more row, if that fits.
    fn with(self, row: &RoutingDecision<'_>, most: Self) -> Option<Self> {
        let longest = row.targets.len().max(row.dropped.len()).max(1);
        let next = Self { rows: self.rows + 1, values: self.values + longest };
        (next.rows <= most.rows && next.values <= most.values).then_some(next)
    }
}

/// Writes `trace` as the whole of the file at `path`.
///
/// # Errors
/// What the file system refuses.
pub fn write(trace: &Trace, path: &Path) -> Result<(), TraceError> {
    let mut writer = TraceWriter::create(path)?;
    writer.add(trace)?;
    writer.finish()
}

/// A Parquet file of decisions that is being written. It takes its place by
/// [`TraceWriter::finish`]; without that nothing stays.
pub struct TraceWriter {
    writer: SerializedFileWriter<NewFile>,
    path: PathBuf,
    /// Routers and texts of all decisions, without these.
    about: Trace,
    held: Held,
    left_out: usize,
}

impl TraceWriter {
    /// Starts a file that is to appear at `path`.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn create(path: &Path) -> Result<Self, TraceError> {
        let file = NewFile::create(path).map_err(TraceError::io("creating", path))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by("lathe".to_owned())
            .build();
        let writer = parse_message_type(SCHEMA)
            .and_then(|schema| SerializedFileWriter::new(file, schema.into(), Arc::new(properties)))
            .map_err(refused(path))?;
        Ok(Self {
            writer,
            path: path.to_path_buf(),
            about: Trace::default(),
            held: Held::default(),
            left_out: 0,
        })
    }

    /// Adds decisions, as they are ordered. What is more than [`crate::read`] takes, 2^24 rows or
    /// 2^27 targets, is left out and counted.
    ///
    /// # Errors
    /// What the file system refuses; a router of more targets than [`crate::read`] takes.
    pub fn add(&mut self, trace: &Trace) -> Result<(), TraceError> {
        self.about.append(&trace.emptied(), |sequence| sequence);
        if let Some((_, site)) = trace.sites.iter().find(|(_, s)| s.targets > MOST_TARGETS) {
            let reason = format!(
                "a router has {} targets, expected at most {MOST_TARGETS}; trace a smaller model",
                site.targets
            );
            return Err(TraceError::Shape { form: "a table of decisions", reason });
        }
        let fitting = self.fitting(trace, MOST);
        for start in (0..fitting).step_by(GROUP) {
            let rows = start..(start + GROUP).min(fitting);
            let facts: Vec<TokenFacts> = rows.clone().map(|i| trace.facts(i)).collect();
            self.group(&rows.map(|i| trace.get(i)).collect::<Vec<_>>(), &facts)
                .map_err(refused(&self.path))?;
        }
        Ok(())
    }

    /// How many decisions, from the first, the file still takes; the others are counted as left
    /// out, and so is all that comes later.
    fn fitting(&mut self, trace: &Trace, most: Held) -> usize {
        let mut fitting = 0;
        while self.left_out == 0 && fitting < trace.len() {
            let Some(held) = self.held.with(&trace.get(fitting), most) else { break };
            self.held = held;
            fitting += 1;
        }
        self.left_out += trace.len() - fitting;
        fitting
    }

    /// Decisions that had no room in the file.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    fn group(
        &mut self,
        rows: &[RoutingDecision<'_>],
        facts: &[TokenFacts],
    ) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        let mut number = 0;
        while let Some(mut column) = group.next_column()? {
            match (number, column.untyped()) {
                (0, ColumnWriter::Int64ColumnWriter(to)) => {
                    let (steps, there) = some(rows.iter().map(|row| row.step));
                    let steps: Vec<i64> = steps.into_iter().map(|step| step as i64).collect();
                    to.write_batch(&steps, Some(&there), None)?;
                }
                (1, ColumnWriter::Int64ColumnWriter(to)) => {
                    let sequences: Vec<i64> = rows.iter().map(|row| row.sequence as i64).collect();
                    to.write_batch(&sequences, None, None)?;
                }
                (4, ColumnWriter::Int32ColumnWriter(to)) => {
                    let (layers, there) = some(rows.iter().map(|row| row.layer));
                    let layers: Vec<i32> = layers.into_iter().map(|layer| layer as i32).collect();
                    to.write_batch(&layers, Some(&there), None)?;
                }
                (2 | 3 | 5, ColumnWriter::Int32ColumnWriter(to)) => {
                    let mut values = Vec::with_capacity(rows.len());
                    for row in rows {
                        values.push(match number {
                            2 => row.position as i32,
                            3 => row.token as i32,
                            _ => row.recursion as i32,
                        });
                    }
                    to.write_batch(&values, None, None)?;
                }
                (6 | 8, ColumnWriter::Int32ColumnWriter(to)) => {
                    let lists = rows.iter().map(|row| match number {
                        6 => row.targets,
                        _ => row.dropped,
                    });
                    let (values, present, again) = levels(lists);
                    let values: Vec<i32> = values.into_iter().map(|target| target as i32).collect();
                    to.write_batch(&values, Some(&present), Some(&again))?;
                }
                (9, ColumnWriter::FloatColumnWriter(to)) => {
                    let (losses, there) = some(facts.iter().map(|facts| facts.loss));
                    to.write_batch(&losses, Some(&there), None)?;
                }
                (10, ColumnWriter::Int32ColumnWriter(to)) => {
                    let (sources, there) = some(facts.iter().map(|facts| facts.source));
                    let sources: Vec<i32> =
                        sources.into_iter().map(|source| source as i32).collect();
                    to.write_batch(&sources, Some(&there), None)?;
                }
                (_, ColumnWriter::FloatColumnWriter(to)) => {
                    let (values, present, again) = levels(rows.iter().map(|row| row.weights));
                    to.write_batch(&values, Some(&present), Some(&again))?;
                }
                _ => return Err(ParquetError::General("a column of another type".into())),
            }
            column.close()?;
            number += 1;
        }
        group.close()?;
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// What the file system refuses; nothing of the file stays then.
    pub fn finish(mut self) -> Result<(), TraceError> {
        let sites: Vec<_> = self.about.sites.iter().collect();
        let sites = serde_json::to_string(&sites).unwrap_or_default();
        self.writer.append_key_value_metadata(KeyValue::new(SITES.to_owned(), sites));
        if !self.about.texts.is_empty() {
            let texts: Vec<_> = self.about.texts.iter().collect();
            let texts = serde_json::to_string(&texts).unwrap_or_default();
            self.writer.append_key_value_metadata(KeyValue::new(TEXTS.to_owned(), texts));
        }
        if !self.about.sources.is_empty() {
            let sources = serde_json::to_string(&self.about.sources).unwrap_or_default();
            self.writer.append_key_value_metadata(KeyValue::new(SOURCES.to_owned(), sources));
        }
        let file = self.writer.into_inner().map_err(refused(&self.path))?;
        file.finish().map_err(TraceError::io("writing", &self.path))
    }
}

/// The values that there are, and for each row whether there is one.
fn some<T>(values: impl Iterator<Item = Option<T>>) -> (Vec<T>, Vec<i16>) {
    let (mut found, mut there) = (Vec::new(), Vec::new());
    for value in values {
        there.push(i16::from(value.is_some()));
        found.extend(value);
    }
    (found, there)
}

/// Values of lists one after the other, for each whether there is one (0 marks an empty list), and
/// whether it goes on a list.
fn levels<'a, T: Copy + 'a>(lists: impl Iterator<Item = &'a [T]>) -> (Vec<T>, Vec<i16>, Vec<i16>) {
    let (mut values, mut present, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        if list.is_empty() {
            present.push(0);
            again.push(0);
        }
        for (i, &value) in list.iter().enumerate() {
            values.push(value);
            present.push(1);
            again.push(i16::from(i > 0));
        }
    }
    (values, present, again)
}

fn refused(path: &Path) -> impl FnOnce(ParquetError) -> TraceError {
    let path = path.to_path_buf();
    move |error| {
        // What the file system says has its own next move, such as room on the disk.
        let source = match error {
            ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
                Ok(source) => *source,
                Err(other) => std::io::Error::other(other),
            },
            other => std::io::Error::other(other),
        };
        TraceError::Io { action: "writing", path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_again_is_left_out_and_counted() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("t.parquet");
        let mut trace = Trace::default();
        for position in 0..10 {
            trace.push(RoutingDecision {
                step: None,
                sequence: 0,
                position,
                token: 0,
                layer: Some(0),
                recursion: 0,
                targets: &[1, 2, 3],
                weights: &[],
                dropped: &[],
            });
        }
        for (rows, values, fitting) in [(20, 99, [10, 10]), (13, 99, [10, 3]), (99, 29, [9, 0])] {
            let mut writer = TraceWriter::create(&path).expect("creates");
            let most = Held { rows, values };
            let found = [writer.fitting(&trace, most), writer.fitting(&trace, most)];
            assert_eq!(found, fitting);
            assert_eq!(writer.left_out(), 20 - fitting[0] - fitting[1]);
        }
        trace.widen(Some(0), MOST_TARGETS + 1);
        let error = write(&trace, &path).expect_err("as read refuses it").to_string();
        assert!(error.contains("4097 targets") && !path.exists(), "{error}");
    }
}
