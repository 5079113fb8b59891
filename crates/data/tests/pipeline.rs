//! From files to windows: order, splits, counts, determinism, and every token exactly once.

mod common;

use common::{build_small, sentence, tokenizer, write_inputs};
use data::build::{BuildOptions, SplitBy, build, build_documents};
use data::documents::{Document, Documents, Input, ReadOptions, list_files};
use data::{Corpus, Split, Window, Windows};
use std::collections::BTreeMap;
use std::path::Path;

fn folder(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

fn read_all(inputs: &[Input], options: &ReadOptions) -> Vec<Document> {
    Documents::new(list_files(inputs, options).unwrap().files, options.clone())
        .map(|d| d.unwrap().1)
        .collect()
}

#[test]
fn builds_are_identical_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(&dir.path().join("in"));
    let mut built = Vec::new();
    for threads in [1, 2, 7] {
        let out = dir.path().join(format!("out{threads}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| build_small(&dir.path().join("in"), &out));
        built.push(folder(&out));
    }
    assert!(built[0] == built[1] && built[0] == built[2]);
    assert!(built[0].keys().all(|name| !name.ends_with(".partial")));
    assert!(built[0].keys().filter(|name| name.starts_with("train-")).count() > 3);
}

#[test]
fn manifest_counts_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path());
    let out = tempfile::tempdir().unwrap();
    let manifest = build_small(dir.path(), out.path());
    let documents = read_all(&[Input::from(dir.path())], &ReadOptions::default());
    assert_eq!(documents.len(), 221);
    let bytes: usize = documents.iter().map(|d| d.text.len()).sum();
    assert_eq!(manifest.train.total.documents + manifest.validation.total.documents, 221);
    assert_eq!(manifest.train.total.bytes + manifest.validation.total.bytes, bytes as u64);
    assert_eq!(manifest.sources[..2], ["one", "two"]);
    assert_eq!(manifest.sources.len(), 4);
    assert_eq!(manifest.licenses["one"]["MIT"], 150);
    let share = manifest.validation.total.documents;
    assert!((20..70).contains(&share), "{share}");
    for split in [Split::Train, Split::Validation] {
        let corpus = Corpus::open(out.path(), split).unwrap();
        let summed: u64 =
            (0..manifest.sources.len()).map(|i| manifest.split(split).by_source[i].tokens).sum();
        assert_eq!(corpus.tokens(), summed);
        assert_eq!(corpus.token_bytes(), tokenizer().token_bytes());
        assert_eq!(corpus.tokenizer_sha256(), tokenizer().sha256());
        assert_eq!(
            data::Tokenizer::load(&corpus.tokenizer_path()).unwrap().sha256(),
            tokenizer().sha256()
        );
    }
}

#[test]
fn stream_is_the_documents_in_order_with_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path());
    let out = tempfile::tempdir().unwrap();
    build_small(dir.path(), out.path());
    let tokenizer = tokenizer();
    let (mut expected, mut sources, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (number, document) in
        read_all(&[Input::from(dir.path())], &ReadOptions::default()).into_iter().enumerate()
    {
        if data::build::split_of(document.text.as_bytes(), 200) == Split::Train {
            let mut ids = tokenizer.encode_ordinary(&document.text).unwrap();
            ids.push(0);
            sources.extend(std::iter::repeat_n(document.source.clone(), ids.len()));
            numbers.extend(std::iter::repeat_n(number, ids.len()));
            expected.extend(ids);
        }
    }
    let corpus = Corpus::open(out.path(), Split::Train).unwrap();
    assert_eq!(corpus.tokens(), expected.len() as u64);
    for seq_len in [1, 2, 7, 64, 1000, expected.len() - 1] {
        let windows = Windows::new(&corpus, seq_len, 0).unwrap();
        assert_eq!(windows.len(), ((expected.len() - 1) / seq_len) as u64);
        assert_eq!(windows.dropped_tokens(), ((expected.len() - 1) % seq_len) as u64);
        for i in 0..windows.len() {
            let Window {
                ids, targets, document, target_same_document, source, index, epoch, ..
            } = windows.unshuffled(i).unwrap();
            let at = i as usize * seq_len;
            assert_eq!((index, epoch), (i, 0));
            assert_eq!(ids, expected[at..at + seq_len]);
            assert_eq!(targets, expected[at + 1..=at + seq_len]);
            for row in 0..seq_len {
                assert_eq!(target_same_document[row], numbers[at + row] == numbers[at + row + 1]);
                assert_eq!(corpus.sources()[usize::from(source[row])], sources[at + row + 1]);
                let same = row > 0 && numbers[at + row] == numbers[at + row - 1];
                let before = if row > 0 { document[row - 1] } else { 0 };
                assert_eq!(document[row], before + u32::from(row > 0 && !same));
            }
        }
        assert!(windows.unshuffled(windows.len()).is_err());
    }
}

#[test]
fn documents_begin_and_end_as_they_are_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path());
    let tokenizer = tokenizer();
    let built = |begin: Option<u32>, end: Option<u32>| {
        let out = tempfile::tempdir().unwrap();
        let options = BuildOptions { begin, end, valid_per_mille: 0, ..BuildOptions::default() };
        let manifest = build(&[Input::from(dir.path())], &tokenizer, out.path(), &options).unwrap();
        let corpus = Corpus::open(out.path(), Split::Train).unwrap();
        let window = Windows::new(&corpus, corpus.tokens() as usize - 1, 0).unwrap();
        let mut ids = window.unshuffled(0).unwrap().ids.to_vec();
        ids.extend(window.unshuffled(0).unwrap().targets.last());
        (ids, manifest, corpus.given_end())
    };
    let texts = read_all(&[Input::from(dir.path())], &ReadOptions::default());
    for (begin, end, given) in [
        (None, None, None),
        (Some(1), None, None),
        (Some(2), Some(3), Some(3)),
        (None, Some(0), None),
    ] {
        let mut expected = Vec::new();
        for document in &texts {
            expected.extend(begin);
            expected.extend(tokenizer.encode_ordinary(&document.text).unwrap());
            expected.push(end.unwrap_or(0));
        }
        let (ids, manifest, given_end) = built(begin, end);
        assert_eq!((ids == expected, given_end), (true, given), "{begin:?} {end:?}");
        let bytes: usize = texts.iter().map(|document| document.text.len()).sum();
        assert_eq!(manifest.train.total.bytes, bytes as u64);
    }
    let out = tempfile::tempdir().unwrap();
    let options = BuildOptions { end: Some(320), ..BuildOptions::default() };
    let error = build(&[Input::from(dir.path())], &tokenizer, out.path(), &options).unwrap_err();
    assert!(error.to_string().contains("320"), "{error}");
}

#[test]
fn each_epoch_gives_each_window_once_and_any_position_restarts() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path());
    let out = tempfile::tempdir().unwrap();
    build_small(dir.path(), out.path());
    let corpus = Corpus::open(out.path(), Split::Train).unwrap();
    let mut orders = Vec::new();
    for seq_len in [3, 16, 33, 100, 1000] {
        for seed in [0, 1, 77] {
            let windows = Windows::new(&corpus, seq_len, seed).unwrap();
            let run: Vec<Window> = (0..3 * windows.len()).map(|p| windows.at(p).unwrap()).collect();
            for (epoch, part) in run.chunks(windows.len() as usize).enumerate() {
                let mut indices: Vec<u64> = part.iter().map(|w| w.index).collect();
                if seq_len == 16 {
                    orders.push(indices.clone());
                }
                indices.sort_unstable();
                assert!(indices.into_iter().eq(0..windows.len()));
                assert!(part.iter().all(|w| w.epoch == epoch as u64));
            }
            let restarted =
                Windows::new(&Corpus::open(out.path(), Split::Train).unwrap(), seq_len, seed)
                    .unwrap();
            for position in (0..3 * windows.len()).rev().step_by(5) {
                assert_eq!(restarted.at(position).unwrap(), run[position as usize]);
            }
            let plain = windows.unshuffled(run[0].index).unwrap();
            assert_eq!((plain.ids, plain.targets), (run[0].ids.clone(), run[0].targets.clone()));
        }
    }
    assert_eq!(orders.len(), 9);
    for i in 0..9 {
        for j in 0..i {
            assert_ne!(orders[i], orders[j]);
        }
    }
}

#[test]
fn windows_name_what_is_too_short() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "few words").unwrap();
    let options = BuildOptions { valid_per_mille: 0, ..BuildOptions::default() };
    let out = dir.path().join("out");
    build(&[Input::from(dir.path().join("a.txt"))], &tokenizer(), &out, &options).unwrap();
    let corpus = Corpus::open(&out, Split::Train).unwrap();
    for seq_len in [0, 500] {
        let message = Windows::new(&corpus, seq_len, 0).err().unwrap().to_string();
        assert!(message.contains("sequence length") && message.contains("train"), "{message}");
    }
    let empty = Corpus::open(&out, Split::Validation).unwrap();
    assert_eq!(empty.tokens(), 0);
    assert!(Windows::new(&empty, 1, 0).err().unwrap().to_string().contains("validation"));
}

#[test]
fn splits_follow_content_file_or_input() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    for i in 0..60 {
        let rows: String = (0..3)
            .map(|k| format!("{}\n", serde_json::json!({"text": sentence(i * 3 + k)})))
            .collect();
        std::fs::write(folder.join(format!("{i}.jsonl")), rows).unwrap();
    }
    let by = |split_by, name: &str, input: Input| {
        let options = BuildOptions { valid_per_mille: 300, split_by, ..BuildOptions::default() };
        build(&[input], &tokenizer(), &dir.path().join(name), &options).unwrap()
    };
    let by_file = by(SplitBy::File, "file", Input::from(&folder));
    for (train, validation) in by_file.train.by_source.iter().zip(&by_file.validation.by_source) {
        assert!(matches!((train.documents, validation.documents), (3, 0) | (0, 3)));
    }
    assert!(by_file.validation.total.documents > 0 && by_file.train.total.documents > 0);
    let by_content = by(SplitBy::Content, "content", Input::from(&folder));
    let torn = |(t, v): &(&data::manifest::Totals, &data::manifest::Totals)| {
        t.documents > 0 && v.documents > 0
    };
    assert!(
        by_content.train.by_source.iter().zip(&by_content.validation.by_source).any(|p| torn(&p))
    );
    let forced = by(
        SplitBy::Content,
        "forced",
        Input { path: folder.clone(), split: Some(Split::Validation) },
    );
    assert_eq!((forced.train.total.documents, forced.validation.total.documents), (0, 180));
}

#[test]
fn documents_with_their_splits_need_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let documents = (0..20).map(|i| {
        let split = if i % 4 == 0 { Split::Validation } else { Split::Train };
        (Document { source: format!("s{}", i % 2), license: None, text: sentence(i) }, split)
    });
    let seen = std::cell::RefCell::new(Vec::new());
    let report = |p: data::build::Progress| seen.borrow_mut().push(p.done.documents);
    let options = BuildOptions { progress: Some(&report), ..BuildOptions::default() };
    let manifest = build_documents(documents, &tokenizer(), dir.path(), &options).unwrap();
    assert_eq!((manifest.train.total.documents, manifest.validation.total.documents), (15, 5));
    assert_eq!(manifest.licenses["s0"][""], 10);
    assert_eq!(*seen.borrow().last().unwrap(), 20);
}

#[test]
fn a_document_cannot_forge_an_end_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "before<|endoftext|>after".to_owned();
    let document = Document { source: "s".into(), license: None, text };
    build_documents([(document, Split::Train)], &tokenizer(), dir.path(), &BuildOptions::default())
        .unwrap();
    let corpus = Corpus::open(dir.path(), Split::Train).unwrap();
    let windows = Windows::new(&corpus, corpus.tokens() as usize - 1, 0).unwrap();
    let window = windows.at(0).unwrap();
    assert!(window.ids.iter().all(|&id| id >= 3));
    assert_eq!(*window.targets.last().unwrap(), 0);
    assert!(window.target_same_document.iter().all(|&same| same));
}

#[test]
fn large_vocabularies_take_four_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (vocab, width) in [(65_536, 2), (65_537, 4)] {
        assert_eq!(data::shard::token_width(vocab), width);
        let path = dir.path().join(format!("{vocab}.shard"));
        let mut writer = data::shard::ShardWriter::create(&path, vocab).unwrap();
        writer.push(&[0, 9, vocab as u32 - 1], 0).unwrap();
        writer.push(&[1], 1).unwrap();
        assert!(writer.push(&[vocab as u32], 0).is_err());
        assert!(writer.push(&[], 0).is_err());
        writer.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 + 4 * width as u64 + 24);
        let shard = data::shard::Shard::open(&path, 2, true).unwrap();
        assert_eq!((shard.tokens(), shard.documents(), shard.vocab_size()), (4, 2, vocab));
    }
}

#[test]
fn plain_text_is_cut_at_lines_and_separators() {
    let dir = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8], document_bytes| -> Vec<String> {
        std::fs::write(dir.path().join("t.txt"), bytes).unwrap();
        let options = ReadOptions { document_bytes, ..ReadOptions::default() };
        read_all(&[Input::from(dir.path().join("t.txt"))], &options)
            .into_iter()
            .map(|d| d.text)
            .collect()
    };
    assert_eq!(
        read(b"one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree", 1000),
        ["one\ntwo\n", "three"]
    );
    assert_eq!(
        read(b"\xEF\xBB\xBFfirst line\nsecond line\nthird", 20),
        ["first line\n", "second line\nthird"]
    );
    // A document may be just as long; the mark of the first one stays where it is text.
    assert_eq!(read(b"0123456\n89abcde\nsecond\n", 16), ["0123456\n89abcde\n", "second\n"]);
    assert_eq!(
        read(b"\xEF\xBB\xBFone\n<|endoftext|>\n\xEF\xBB\xBFtwo", 100),
        ["one\n", "\u{feff}two"]
    );
    let long = "\u{e9}\u{1F600}x".repeat(40);
    for bytes in 16..40 {
        let pieces = read(long.as_bytes(), bytes);
        assert_eq!(pieces.concat(), long);
        assert!(pieces.len() > 1 && pieces.iter().all(|p| p.len() <= bytes + 3));
    }
}

#[test]
fn fields_that_nobody_reads_lose_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        r#"{"text": "a NaN in \"NaN\"", "score": NaN, "more": [-Infinity, {"x": Infinity}]}"#,
        r#"{"text": "b \\", "broken": "\ud800", "key": {"\ud800": 1}}"#,
        "{\"score\": NaN, \"text\": \"c \u{e9}\"}",
    ];
    std::fs::write(dir.path().join("a.jsonl"), rows.join("\n")).unwrap();
    let texts = read_all(&[Input::from(dir.path())], &ReadOptions::default());
    let texts: Vec<&str> = texts.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, ["a NaN in \"NaN\"", "b \\", "c \u{e9}"]);
    // What is read must be what it says.
    for row in [r#"{"text": NaN}"#, r#"{"text": "\ud800"}"#, r#"{"text": "a", "x": NaNa}"#] {
        std::fs::write(dir.path().join("a.jsonl"), row).unwrap();
        let inputs = [Input::from(dir.path())];
        let files = list_files(&inputs, &ReadOptions::default()).unwrap().files;
        let mut documents = Documents::new(files, ReadOptions::default());
        let error = documents.next().expect("one").expect_err(row).to_string();
        assert!(error.contains("a.jsonl"), "{error}");
    }
}

#[test]
fn files_are_found_in_the_order_of_names_with_their_sources() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("notes");
    std::fs::create_dir_all(root.join("b")).unwrap();
    for (name, text) in [
        ("b/x.md", "bx"),
        ("a.TXT", "a"),
        ("c.rs", "c"),
        ("b/y.bin", "no"),
        ("z.jsonl", "{\"text\":\"z\"}"),
    ] {
        std::fs::write(root.join(name), text).unwrap();
    }
    let options = ReadOptions {
        extensions: vec!["txt".into(), "md".into(), "rs".into()],
        ..ReadOptions::default()
    };
    let found: Vec<_> =
        read_all(&[Input::from(&root)], &options).into_iter().map(|d| (d.text, d.source)).collect();
    let named = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|&(t, s)| (t.to_owned(), s.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(found, named(&[("a", "notes"), ("bx", "notes"), ("c", "notes"), ("z", "z")]));
    let direct = read_all(&[Input::from(root.join("b/x.md"))], &options);
    assert_eq!(direct[0].source, "x");
}

/// Files are opened one after another; a link to a file is one, a link to a folder leads nowhere.
#[cfg(unix)]
#[test]
fn links_to_files_are_read_and_links_to_folders_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (dir.path().join("notes"), dir.path().join("other"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(root.join("a.txt"), "a").unwrap();
    std::fs::write(other.join("b.txt"), "b").unwrap();
    std::fs::write(other.join("c.txt"), "c").unwrap();
    std::os::unix::fs::symlink(other.join("b.txt"), root.join("b.txt")).unwrap();
    std::os::unix::fs::symlink(&other, root.join("folder")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nothing"), root.join("broken.txt")).unwrap();
    let options = ReadOptions::default();
    let mut documents =
        Documents::new(list_files(&[Input::from(&root)], &options).unwrap().files, options);
    assert_eq!((documents.files().len(), documents.files_opened()), (2, 0));
    for (i, text) in ["a", "b"].into_iter().enumerate() {
        let (file, document) = documents.next().unwrap().unwrap();
        assert_eq!((file, document.text.as_str(), document.source.as_str()), (i, text, "notes"));
        assert_eq!((documents.files_opened(), documents.row()), (i + 1, 1));
    }
    assert!(documents.next().is_none());
    assert_eq!(documents.files_opened(), 2);
}

#[test]
fn the_least_sizes_of_reading_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let input = [Input::from(dir.path().join("a.txt"))];
    std::fs::write(&input[0].path, "a").unwrap();
    let sized =
        |document_bytes, max_row| ReadOptions { document_bytes, max_row, ..Default::default() };
    assert_eq!(list_files(&input, &sized(16, 1)).unwrap().files.len(), 1);
    for (options, name) in [(sized(15, 1), "document_bytes"), (sized(16, 0), "max_row")] {
        let said = list_files(&input, &options).unwrap_err().to_string();
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn packed_and_plain_rows_read_alike() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..500)
        .map(|i| format!("{}\n\n", serde_json::json!({"body": sentence(i), "licence": "CC0"})))
        .collect();
    std::fs::write(dir.path().join("p.ndjson"), &rows).unwrap();
    std::fs::write(dir.path().join("q.jsonl.zst"), zstd::encode_all(rows.as_bytes(), 3).unwrap())
        .unwrap();
    let options = ReadOptions { text_field: "body".into(), ..ReadOptions::default() };
    let read = read_all(&[Input::from(dir.path())], &options);
    assert_eq!(read.len(), 1000);
    for i in 0..500 {
        assert_eq!((&read[i].text, &read[i + 500].text), (&sentence(i), &sentence(i)));
        assert_eq!(read[i].license.as_deref(), Some("CC0"));
        assert_eq!((read[i].source.as_str(), read[i + 500].source.as_str()), ("p", "q"));
    }
}

/// Documents that are drawn whole where that fills a window on both sides, and cut where not.
#[test]
fn few_documents_and_long_ones_give_both_sides_a_window() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..400).map(|i| sentence(i) + "\n").collect();
    let build_with = |name: &str, files: &[&str], more: BuildOptions<'_>| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        for (i, text) in files.iter().enumerate() {
            std::fs::write(folder.join(format!("{i}.txt")), text).unwrap();
        }
        let options = BuildOptions { window: Some(256), ..more };
        let out = dir.path().join(format!("{name}-built"));
        build(&[Input::from(folder)], &tokenizer(), &out, &options).unwrap()
    };
    let plain = BuildOptions::default;
    // One file, which is one document.
    let one = build_with("one", &[&text[..20_000]], plain());
    assert_eq!(one.ends_per_mille, Some(100));
    assert_eq!((one.train.total.documents, one.validation.total.documents), (1, 1));
    assert!(one.windows(Split::Validation, 256) >= 1 && one.windows(Split::Train, 256) >= 1);
    let bytes = one.train.total.bytes + one.validation.total.bytes;
    assert_eq!(bytes, 20_000, "no byte is lost or read twice");
    assert!((2000..=4000).contains(&one.validation.total.bytes), "{:?}", one.validation);
    // Little text: more of it, so that a window is full.
    let tail = one.validation.total;
    let short = (10 * 300 * tail.bytes / tail.tokens / 3) as usize;
    let little = build_with("little", &[&text[..short]], plain());
    assert!(little.ends_per_mille > Some(100), "{:?}", little.ends_per_mille);
    assert_eq!(
        (little.windows(Split::Validation, 256) > 0, little.windows(Split::Train, 256) > 0),
        (true, true)
    );
    // As much as was asked for, and on both sides, too, where all whole documents are on one.
    let most = BuildOptions { valid_per_mille: 900, ..plain() };
    let most = build_with("most", &[&text[..20_000]], most);
    assert_eq!(most.ends_per_mille, Some(900));
    assert!(most.windows(Split::Train, 256) > 0);
    // Whole documents where they suffice, as without a window.
    let documents: Vec<String> = (0..300).map(|i| (i..i + 9).map(sentence).collect()).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let whole = build_with("whole", &documents, plain());
    assert_eq!(whole.ends_per_mille, None);
    let options = plain();
    let folder = [Input::from(dir.path().join("whole"))];
    let drawn = build(&folder, &tokenizer(), &dir.path().join("drawn"), &options).unwrap();
    assert_eq!(whole, drawn);
    // Who wants none or nothing else gets it, and a file of a split by file stays whole.
    let none = build_with("none", &[&text], BuildOptions { valid_per_mille: 0, ..plain() });
    assert_eq!((none.ends_per_mille, none.validation.total.tokens), (None, 0));
    let all = build_with("all", &[&text], BuildOptions { valid_per_mille: 1000, ..plain() });
    assert_eq!((all.ends_per_mille, all.train.total.tokens), (None, 0));
    let by_file = BuildOptions { split_by: SplitBy::File, ..plain() };
    assert_eq!(build_with("by-file", &[&text], by_file).ends_per_mille, None);
}

#[test]
fn what_is_left_out_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.jsonl"), "{\"text\": \"one\"}\n{\"text\": \" \"}\n{}\n").unwrap();
    std::fs::write(folder.join("b.txt"), "two\n<|endoftext|>\n").unwrap();
    for name in ["x.pdf", "y.PDF", "z.html", "Makefile"] {
        std::fs::write(folder.join(name), "other").unwrap();
    }
    let read = ReadOptions { skip_bad: true, ..Default::default() };
    let options = BuildOptions { read, ..BuildOptions::default() };
    let out = dir.path().join("out");
    let manifest = build(&[Input::from(folder)], &tokenizer(), &out, &options).unwrap();
    assert_eq!((manifest.skipped_rows, manifest.blank_rows), (1, 1));
    let others: Vec<(&str, u64)> =
        manifest.other_files.iter().map(|(ending, count)| (ending.as_str(), *count)).collect();
    assert_eq!(others, [("", 1), (".html", 1), (".pdf", 2)]);
    assert_eq!(data::Manifest::load(&out).unwrap(), manifest);
}
