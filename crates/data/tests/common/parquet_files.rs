//! Small Parquet files.

use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::Path;
use std::sync::Arc;

/// Writes two row groups of the same texts.
pub(crate) fn write_parquet(path: &Path, schema: &str, texts: &[&[u8]], levels: Option<&[i16]>) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let properties =
        WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for _ in 0..2 {
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            match &mut column.untyped() {
                parquet::column::writer::ColumnWriter::ByteArrayColumnWriter(c) => {
                    let values: Vec<ByteArray> =
                        texts.iter().map(|t| ByteArray::from(t.to_vec())).collect();
                    c.write_batch(&values, levels, None).unwrap();
                }
                parquet::column::writer::ColumnWriter::Int64ColumnWriter(c) => {
                    let values: Vec<i64> =
                        (0..levels.map_or(texts.len(), <[i16]>::len) as i64).collect();
                    c.write_batch(&values, None, None).unwrap();
                }
                _ => unreachable!("the schemas hold strings and integers"),
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// Texts beside a column of numbers.
pub(crate) const TEXTS: &str = "message m { required int64 n; required binary text (UTF8); }";
