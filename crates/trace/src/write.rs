//! A trace as a Parquet file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use files::NewFile;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::TraceError;
use crate::table::{RoutingDecision, Trace};

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
}";
/// Under this name the file's metadata says what each router decides among.
pub(crate) const SITES: &str = "lathe.sites";
/// Decisions of a row group.
const GROUP: usize = 1 << 18;

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
    sites: Trace,
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
        Ok(Self { writer, path: path.to_path_buf(), sites: Trace::default() })
    }

    /// Adds decisions, as they are ordered.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn add(&mut self, trace: &Trace) -> Result<(), TraceError> {
        self.sites.append(&Trace::among(trace.sites.clone()), |sequence| sequence);
        for start in (0..trace.len()).step_by(GROUP) {
            let rows = start..(start + GROUP).min(trace.len());
            self.group(&rows.map(|i| trace.get(i)).collect::<Vec<_>>())
                .map_err(refused(&self.path))?;
        }
        Ok(())
    }

    fn group(&mut self, rows: &[RoutingDecision<'_>]) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        let mut number = 0;
        while let Some(mut column) = group.next_column()? {
            match (number, column.untyped()) {
                (0, ColumnWriter::Int64ColumnWriter(to)) => {
                    let (steps, levels): (Vec<_>, Vec<_>) =
                        rows.iter().map(|row| (row.step, i16::from(row.step.is_some()))).unzip();
                    let steps: Vec<i64> =
                        steps.into_iter().flatten().map(|step| step as i64).collect();
                    to.write_batch(&steps, Some(&levels), None)?;
                }
                (1, ColumnWriter::Int64ColumnWriter(to)) => {
                    let sequences: Vec<i64> = rows.iter().map(|row| row.sequence as i64).collect();
                    to.write_batch(&sequences, None, None)?;
                }
                (4, ColumnWriter::Int32ColumnWriter(to)) => {
                    let (layers, levels): (Vec<_>, Vec<_>) =
                        rows.iter().map(|row| (row.layer, i16::from(row.layer.is_some()))).unzip();
                    let layers: Vec<i32> =
                        layers.into_iter().flatten().map(|layer| layer as i32).collect();
                    to.write_batch(&layers, Some(&levels), None)?;
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
        let sites: Vec<_> = self.sites.sites.iter().collect();
        let sites = serde_json::to_string(&sites).unwrap_or_default();
        self.writer.append_key_value_metadata(KeyValue::new(SITES.to_owned(), sites));
        let file = self.writer.into_inner().map_err(refused(&self.path))?;
        file.finish().map_err(TraceError::io("writing", &self.path))
    }
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
