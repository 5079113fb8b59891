//! A trace comes back from its file as it went, and files that are no traces are refused by name.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use trace::shapes::{Told, TraceForm, open, save};
use trace::{RoutingDecision, Site, Trace, read, write};

/// Decisions with all that a trace can hold: steps or none, depth and layers, empty lists.
fn whole() -> Trace {
    let mut trace = Trace::default();
    trace.sites.insert(None, Site { targets: 5, computing: 5, uses: Vec::new() });
    trace.sites.insert(Some(2), Site { targets: 9, computing: 8, uses: vec![1, 4] });
    for i in 0..500u32 {
        let targets: Vec<u32> = (0..i % 4).map(|t| 2 * t).collect();
        let weights: Vec<f32> = targets.iter().map(|&t| t as f32 / 7.0).collect();
        trace.push(RoutingDecision {
            step: (i % 3 > 0).then_some(u64::from(i) << 33),
            sequence: u64::from(i / 100),
            position: i % 100,
            token: 7 * i,
            layer: (i % 2 == 0).then_some(2),
            recursion: i % 3,
            targets: &targets,
            weights: if i % 5 == 0 { &[] } else { &weights },
            dropped: if i % 7 == 0 { &[1, 3] } else { &[] },
        });
    }
    trace
}

#[test]
fn a_trace_comes_back_as_it_went() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("t.parquet");
    let trace = whole();
    write(&trace, &path).expect("writes");
    assert!(read(&path).expect("reads") == trace, "all that went");
    let first = std::fs::read(&path).expect("bytes");
    save(&trace, TraceForm::Parquet, &path).expect("writes");
    assert_eq!(std::fs::read(&path).expect("bytes"), first, "the same bits");
    assert!(open(&path).expect("Parquet") == Told::Trace(trace), "as Parquet");
    write(&Trace::default(), &path).expect("writes nothing");
    assert_eq!(read(&path).expect("reads nothing"), Trace::default());
    write(&Trace::default(), &folder.path().join("no/t.parquet")).expect_err("no folder");
}

#[test]
fn what_others_write_is_read() {
    // As a program without unsigned numbers would: 64 bits, optional values, other names inside.
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("t.parquet");
    let schema = "message m { optional int64 token; optional int64 position;
        required int64 sequence; required int64 recursion;
        optional group targets (LIST) { repeated group array { optional int64 item; } } }";
    custom(&path, schema, &[3, 4], Compression::SNAPPY);
    let trace = read(&path).expect("reads");
    let found: Vec<_> = trace.iter().map(|d| (d.token, d.layer, d.step, d.targets)).collect();
    assert_eq!(found, [(3, None, None, &[3, 4][..]), (4, None, None, &[][..])]);
    assert_eq!(trace.sites[&None].targets, 5);
}

/// Two rows of which each number column holds `values`, and each list column `values` in the first
/// row and nothing in the second.
fn custom(path: &Path, schema: &str, values: &[i64; 2], packed: Compression) {
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let file = std::fs::File::create(path).expect("a file");
    let properties = WriterProperties::builder().set_compression(packed).build();
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties)).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    while let Some(mut column) = group.next_column().expect("a column") {
        let descriptor = match column.untyped() {
            ColumnWriter::Int64ColumnWriter(to) => to.get_descriptor().clone(),
            ColumnWriter::Int32ColumnWriter(to) => to.get_descriptor().clone(),
            ColumnWriter::ByteArrayColumnWriter(to) => to.get_descriptor().clone(),
            _ => unreachable!("the schemas hold numbers and texts"),
        };
        let present = descriptor.max_def_level();
        let (defined, again) = match descriptor.max_rep_level() {
            0 => (vec![present; 2], None),
            _ => (vec![present, present, 0], Some(vec![0, 1, 0])),
        };
        let defined = (present > 0).then_some(defined);
        match column.untyped() {
            ColumnWriter::Int64ColumnWriter(to) => {
                to.write_batch(values, defined.as_deref(), again.as_deref()).expect("writes");
            }
            ColumnWriter::Int32ColumnWriter(to) => {
                let values = values.map(|value| value as i32);
                to.write_batch(&values, defined.as_deref(), again.as_deref()).expect("writes");
            }
            ColumnWriter::ByteArrayColumnWriter(to) => {
                let values = ["a", "b"].map(parquet::data_type::ByteArray::from);
                to.write_batch(&values, defined.as_deref(), again.as_deref()).expect("writes");
            }
            _ => unreachable!("the schemas hold numbers and texts"),
        }
        column.close().expect("a column");
    }
    group.close().expect("a group");
    writer.close().expect("a file");
}

#[test]
fn files_that_are_no_traces_are_refused_by_name() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("t.parquet");
    let numbers = "required int64 sequence; required int64 position; required int64 recursion;";
    let list = "required group targets (LIST) { repeated group list { required int32 e; } }";
    let whole = format!("{numbers} required int32 token; {list}");
    let good = |changed: &str| format!("message m {{ {changed} }}");
    custom(&path, &good(&whole), &[3, 4], Compression::UNCOMPRESSED);
    read(&path).expect("all that is needed");
    for (schema, values, told) in [
        (whole.replace("position", "place"), [3, 4], "position"),
        (whole.replace("targets", "experts"), [3, 4], "targets"),
        (whole.replace("required int32 token", "required binary token"), [3, 4], "no numbers"),
        (whole.clone(), [3, -4], "from 0 and below"),
        (whole.clone(), [4, 3], "ascending"),
        (whole.clone(), [3, 4096], "below 4096"),
        (format!("{whole} optional int64 leyer;"), [3, 4], "leyer"),
        (format!("{whole} optional int64 step;"), [0, 1], "from 1"),
        (format!("{whole} optional int64 layer;"), [3, 1 << 17], "layer"),
        (
            whole.replace("required int64 sequence", "repeated int64 sequence"),
            [3, 4],
            "one number a row",
        ),
    ] {
        custom(&path, &good(&schema), &values, Compression::UNCOMPRESSED);
        let error = read(&path).expect_err(told).to_string();
        assert!(error.contains(told) && error.contains("t.parquet"), "{error}");
    }
    custom(&path, &good(&whole), &[3, 4], Compression::UNCOMPRESSED);
    let bytes = std::fs::read(&path).expect("bytes");
    for cut in [0, 3, 4, 12, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).expect("writes");
        open(&path).err().unwrap_or_else(|| panic!("{cut} bytes"));
    }
    for at in (0..bytes.len()).step_by(5) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, damaged).expect("writes");
        // Whatever comes of it, it comes back.
        drop(read(&path));
    }
    for text in ["{}", "[]", "{\"choices\": 1", "x\n", ""] {
        std::fs::write(&path, text).expect("writes");
        open(&path).err().unwrap_or_else(|| panic!("{text}"));
    }
    let error = open(folder.path()).expect_err("a folder").to_string();
    assert!(error.contains("a folder: put a plain file"), "{error}");
}

#[test]
fn routers_that_are_not_as_the_file_says_are_refused() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("t.parquet");
    for (targets, computing, uses, told) in [
        (9, 10, vec![0], "computing"),
        (3, 3, vec![0], "at least the 4 targets that its rows hold, found 3"),
        (9, 9, vec![2, 1, 2], "each once"),
    ] {
        let mut trace = whole();
        trace.sites.insert(Some(2), Site { targets, computing, uses });
        write(&trace, &path).expect("writes");
        let error = read(&path).expect_err(told).to_string();
        assert!(error.contains("lathe.sites of layer 2") && error.contains(told), "{error}");
    }
    // The same told twice is a server's, two decisions about one row are not.
    let mut trace = whole();
    trace.push(trace.clone().get(3));
    write(&trace, &path).expect("writes");
    read(&path).expect("the same twice");
    trace.push(RoutingDecision { targets: &[4], weights: &[], ..trace.clone().get(3) });
    write(&trace, &path).expect("writes");
    let error = read(&path).expect_err("two that differ").to_string();
    assert!(error.contains("two that differ, of the depth router about position 3"), "{error}");
}
