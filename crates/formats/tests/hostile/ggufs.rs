//! GGUF files with one lie each.

use super::common::{Raw, RawTensor, array, string};
use super::experts::listed;
use super::memory::{Meter, put, scratch};
use formats::gguf::{Gguf, GgufModel};
use formats::{ModelFile, TensorRole, TensorSource};
use std::path::Path;

/// Everything a caller may ask of a file.
fn read_all(path: &Path) -> formats::Result<()> {
    let llama = GgufModel::new(Gguf::open(path)?)?;
    for role in TensorRole::all(llama.settings()) {
        llama.tensor(role)?;
    }
    llama.special()?;
    llama.tokenizer_json()?;
    Ok(())
}

pub(super) type Lie = Box<dyn Fn(&mut Raw)>;

fn u32_of(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

fn set(key: &'static str, kind: u32, value: Vec<u8>) -> Lie {
    Box::new(move |raw| raw.set(key, kind, value.clone()))
}

pub(super) fn remove(key: &'static str) -> Lie {
    Box::new(move |raw| raw.remove(key))
}

pub(super) fn tensor(name: &'static str, change: impl Fn(&mut RawTensor) + 'static) -> Lie {
    Box::new(move |raw| change(raw.tensor(name)))
}

pub(super) fn lie(change: impl Fn(&mut Raw) + 'static) -> Lie {
    Box::new(change)
}

/// A lie by name, and what the message must name.
pub(super) type Case = (&'static str, Lie, &'static str);

/// A setting that is the wrong whole number.
pub(super) fn number(
    what: &'static str,
    key: &'static str,
    value: u32,
    field: &'static str,
) -> Case {
    (what, set(key, 4, u32_of(value)), field)
}

/// A setting that is the wrong number of 32 bits.
pub(super) fn real(what: &'static str, key: &'static str, value: f32, field: &'static str) -> Case {
    (what, set(key, 6, value.to_le_bytes().to_vec()), field)
}

/// A setting that is the wrong text.
pub(super) fn text(
    what: &'static str,
    key: &'static str,
    value: &str,
    field: &'static str,
) -> Case {
    (what, set(key, 8, string(value)), field)
}

fn check(cases: Vec<Case>) {
    check_of(Raw::small, cases);
}

/// Each lie in a file that is read without it.
pub(super) fn check_of(honest: fn() -> Raw, cases: Vec<Case>) {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("lie.gguf");
    std::fs::write(&path, honest().bytes()).unwrap();
    read_all(&path).expect("the honest file is read");
    for (what, lie, field) in cases {
        let mut raw = honest();
        lie(&mut raw);
        put(&path, &raw.bytes());
        let before = listed(folder.path());
        let read = read_all(&path);
        assert_eq!(listed(folder.path()), before, "{what}: something was written");
        let message = match read {
            Ok(()) => panic!("{what}: accepted"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains("lie.gguf") && message.contains(field), "{what}: {message}");
    }
    meter.check();
}

#[test]
fn lies_of_the_header_are_refused() {
    let deep = |depth: usize| (0..depth).fold(array(0, &[vec![1]]), |inner, _| array(9, &[inner]));
    check(vec![
        ("another magic", lie(|raw| raw.magic = b"GGML".to_vec()), "magic"),
        ("version 1", lie(|raw| raw.version = 1), "version"),
        ("version 4", lie(|raw| raw.version = 4), "version"),
        ("big-endian", lie(|raw| raw.version = 3 << 24), "big-endian"),
        ("tensors beyond the file", lie(|raw| raw.tensor_count = Some(u64::MAX)), "tensor count"),
        ("tensors beyond the table", lie(|raw| raw.tensor_count = Some(1 << 40)), "tensor count"),
        (
            "settings beyond the file",
            lie(|raw| raw.entry_count = Some(u64::MAX / 2)),
            "count of settings",
        ),
        (
            "one setting too many",
            lie(|raw| raw.entry_count = Some(raw.entries.len() as u64 + 1)),
            "tensor 0: name",
        ),
        (
            "one tensor too many",
            lie(|raw| raw.tensor_count = Some(raw.tensors.len() as u64 + 1)),
            "tensor 12",
        ),
        (
            "one setting too few",
            lie(|raw| raw.entry_count = Some(raw.entries.len() as u64 - 1)),
            "tensor \"tokenizer.ggml.eos_token_id\": type",
        ),
        ("an empty key", lie(|raw| raw.entries[0].0.clear()), "setting 0: key"),
        ("a long key", lie(|raw| raw.entries[0].0 = vec![b'k'; 5000]), "setting 0: key"),
        ("a key that is no UTF-8", lie(|raw| raw.entries[0].0 = vec![0xff; 4]), "setting 0: key"),
        ("a key twice", lie(|raw| raw.entries.push(raw.entries[1].clone())), "llama.block_count"),
        ("an unknown value type", set("x.y", 13, u32_of(0)), "x.y"),
        ("a truth value of 2", set("x.y", 7, vec![2]), "x.y"),
        ("a string beyond the file", set("x.y", 8, u64::MAX.to_le_bytes().to_vec()), "x.y"),
        ("an array of an unknown type", set("x.y", 9, [u32_of(77), vec![0; 8]].concat()), "x.y"),
        ("an array beyond the file", set("x.y", 9, [u32_of(4), vec![0xff; 8]].concat()), "x.y"),
        (
            "strings beyond the file",
            set("x.y", 9, [u32_of(8), (1_u64 << 33).to_le_bytes().to_vec()].concat()),
            "x.y",
        ),
        ("arrays too deep", set("x.y", 9, deep(5)), "x.y"),
        ("arrays far too deep", set("x.y", 9, deep(2000)), "x.y"),
        number("an alignment of 0", "general.alignment", 0, "general.alignment"),
        number("an alignment of 24", "general.alignment", 24, "general.alignment"),
        number("an alignment of 2^31", "general.alignment", 1 << 31, "token_embd.weight"),
        text("an alignment that is a string", "general.alignment", "32", "general.alignment"),
    ]);
}

#[test]
fn lies_about_tensors_are_refused() {
    check(vec![
        ("no name", lie(|raw| raw.tensors[0].name.clear()), "tensor 0: name"),
        (
            "a name that is no UTF-8",
            lie(|raw| raw.tensors[2].name = vec![0xc3, 0x28]),
            "tensor 2: name",
        ),
        (
            "a name twice",
            lie(|raw| raw.tensors[2].name = raw.tensors[1].name.clone()),
            "blk.0.attn_norm.weight",
        ),
        (
            "no dimensions",
            tensor("output.weight", |t| (t.dimensions, t.sizes) = (Some(0), vec![])),
            "dimensions",
        ),
        ("five dimensions", tensor("output.weight", |t| t.sizes = vec![1; 5]), "dimensions"),
        (
            "2^32 - 1 dimensions",
            tensor("output.weight", |t| t.dimensions = Some(u32::MAX)),
            "dimensions",
        ),
        ("a size of 0", tensor("output.weight", |t| t.sizes[1] = 0), "output.weight\": shape"),
        (
            "sizes whose product wraps",
            tensor("output.weight", |t| t.sizes = vec![1 << 32, 1 << 32]),
            "shape",
        ),
        (
            "a product of 2^64 - 1 bytes",
            tensor("output.weight", |t| t.sizes = vec![u64::MAX]),
            "output.weight\": shape",
        ),
        (
            "one row more than the data",
            tensor("output.weight", |t| t.sizes[1] += 1000),
            "output.weight\": shape",
        ),
        ("an unknown type", tensor("output.weight", |t| t.kind = 99), "output.weight\": type"),
        (
            "a type that is not read",
            tensor("output.weight", |t| t.kind = 10),
            "output.weight\": type",
        ),
        ("a removed type", tensor("output.weight", |t| t.kind = 4), "output.weight\": type"),
        (
            "rows of no whole block",
            tensor("output.weight", |t| t.kind = 8),
            "output.weight\": shape",
        ),
    ]);
}

#[test]
fn lies_about_where_tensors_are_are_refused() {
    check(vec![
        (
            "an offset of 2^64 - 32",
            tensor("output.weight", |t| t.offset = u64::MAX - 31),
            "output.weight\": offset",
        ),
        (
            "an offset beyond the data",
            tensor("output.weight", |t| t.offset += 64),
            "output.weight\": offset",
        ),
        (
            "a misaligned offset",
            tensor("output_norm.weight", |t| t.offset += 4),
            "output_norm.weight\": offset",
        ),
        ("an overlap", tensor("blk.0.attn_k.weight", |t| t.offset = 0), "offset"),
        (
            "the same data twice",
            lie(|raw| raw.tensors[2].offset = raw.tensors[3].offset),
            "overlap",
        ),
    ]);
}

#[test]
fn tensors_of_other_models_are_refused() {
    check(vec![
        ("a tensor missing", lie(|raw| drop(raw.tensors.remove(3))), "blk.0.attn_k.weight"),
        ("no embedding", lie(|raw| drop(raw.tensors.remove(0))), "token_embd.weight"),
        (
            "a bias",
            tensor("blk.0.ffn_up.weight", |t| t.name = b"blk.0.attn_q.bias".to_vec()),
            "blk.0.ffn_up.weight",
        ),
        ("one tensor more", lie(|raw| add(raw, "blk.0.attn_q.bias", &[4])), "blk.0.attn_q.bias"),
        ("rotary factors", lie(|raw| add(raw, "rope_freqs.weight", &[1])), "rope_freqs.weight"),
        (
            "a norm of another length",
            tensor("output_norm.weight", |t| t.sizes = vec![3]),
            "output_norm.weight",
        ),
        (
            "a matrix turned",
            tensor("blk.0.ffn_up.weight", |t| t.sizes.reverse()),
            "blk.0.ffn_up.weight",
        ),
        (
            "a matrix of three dimensions",
            tensor("output.weight", |t| t.sizes.push(1)),
            "output.weight",
        ),
        ("NaN", value(7, f32::NAN), "tensor \"token_embd.weight\"[7]"),
        ("infinity", value(9, f32::NEG_INFINITY), "tensor \"token_embd.weight\"[9]"),
    ]);
}

pub(super) fn add(raw: &mut Raw, name: &str, sizes: &[u64]) {
    let offset = raw.data.len() as u64;
    raw.tensors.push(RawTensor {
        name: name.into(),
        dimensions: None,
        sizes: sizes.to_vec(),
        kind: 0,
        offset,
    });
    let bytes = 4 * sizes.iter().product::<u64>() as usize;
    raw.data.resize(raw.data.len() + bytes.next_multiple_of(32), 0);
}

/// A value of the first tensor.
fn value(at: usize, value: f32) -> Lie {
    lie(move |raw| raw.data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes()))
}

#[test]
fn settings_of_other_models_are_refused() {
    check(vec![
        ("no architecture", remove("general.architecture"), "general.architecture"),
        text("another architecture", "general.architecture", "mamba", "general.architecture"),
        number(
            "an architecture that is a number",
            "general.architecture",
            1,
            "general.architecture",
        ),
        (
            "an architecture that is no UTF-8",
            set("general.architecture", 8, [vec![1, 0, 0, 0, 0, 0, 0, 0], vec![0xff]].concat()),
            "general.architecture",
        ),
        number("no layers", "llama.block_count", 0, "layers"),
        number("a billion layers", "llama.block_count", 1_000_000_000, "layers"),
        number("a thousand layers", "llama.block_count", 1000, "blk.1.attn_norm.weight"),
        ("layers missing", remove("llama.block_count"), "llama.block_count"),
        text("layers as a string", "llama.block_count", "1", "llama.block_count"),
        (
            "layers below zero",
            set("llama.block_count", 5, (-1_i32).to_le_bytes().to_vec()),
            "llama.block_count",
        ),
        (
            "layers beyond 32 bits",
            set("llama.block_count", 10, (1_u64 << 40).to_le_bytes().to_vec()),
            "llama.block_count",
        ),
    ]);
}

#[test]
fn shapes_of_other_models_are_refused() {
    check(vec![
        number("no heads", "llama.attention.head_count", 0, "head_count"),
        number("heads that do not divide the width", "llama.attention.head_count", 3, "head_count"),
        (
            "heads of each layer",
            set("llama.attention.head_count", 9, array(5, &[u32_of(2)])),
            "head_count",
        ),
        number("key heads that do not divide", "llama.attention.head_count_kv", 5, "kv_heads"),
        number("no key heads", "llama.attention.head_count_kv", 0, "kv_heads"),
        (
            "an odd head width",
            lie(|raw| {
                raw.set("llama.attention.key_length", 4, u32_of(3));
                raw.set("llama.rope.dimension_count", 4, u32_of(3));
            }),
            "head_dim",
        ),
        number("values of another width", "llama.attention.value_length", 4, "value_length"),
        number("half of the head turned", "llama.rope.dimension_count", 1, "dimension_count"),
        number("a width of 0", "llama.embedding_length", 0, "llama.rope.dimension_count"),
        number("another width", "llama.embedding_length", 8, "llama.rope.dimension_count"),
        number("another inner width", "llama.feed_forward_length", 7, "blk.0.ffn_gate.weight"),
        number("another vocabulary", "llama.vocab_size", 9, "llama.vocab_size"),
        number("no context", "llama.context_length", 0, "context"),
    ]);
}

#[test]
fn arithmetic_of_other_models_is_refused() {
    check(vec![
        ("no epsilon", remove("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon"),
        real("an epsilon of NaN", "llama.attention.layer_norm_rms_epsilon", f32::NAN, "norm_eps"),
        real("an epsilon of 2", "llama.attention.layer_norm_rms_epsilon", 2.0, "norm_eps"),
        real("a rotary base of 0", "llama.rope.freq_base", 0.0, "rope_theta"),
        real("an infinite rotary base", "llama.rope.freq_base", f32::INFINITY, "rope_theta"),
        number("an integer rotary base", "llama.rope.freq_base", 10_000, "llama.rope.freq_base"),
        text("yarn", "llama.rope.scaling.type", "yarn", "llama.rope.scaling.type"),
        text(
            "linear without a factor",
            "llama.rope.scaling.type",
            "linear",
            "llama.rope.scaling.factor",
        ),
        real(
            "a factor without a type",
            "llama.rope.scaling.factor",
            2.0,
            "llama.rope.scaling.factor",
        ),
        (
            "a factor below 1",
            lie(move |raw| {
                raw.set("llama.rope.scaling.type", 8, string("linear"));
                raw.set("llama.rope.scaling.factor", 6, 0.5_f32.to_le_bytes().to_vec());
            }),
            "rope_scaling.factor",
        ),
        number("experts", "llama.expert_count", 8, "llama.expert_used_count"),
        real("a setting that is not known", "llama.logit_scale", 2.0, "llama.logit_scale"),
    ]);
}

#[test]
fn tokenizers_that_contradict_themselves_are_refused() {
    let tokens =
        |list: &[&str]| array(8, &list.iter().map(|token| string(token)).collect::<Vec<_>>());
    let eight = ["<s>", "</s>", "a", "b", "ab", "c", "d", "a"];
    check(vec![
        ("no tokens", remove("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
        (
            "too few tokens",
            set("tokenizer.ggml.tokens", 9, tokens(&eight[..7])),
            "tokenizer.ggml.tokens",
        ),
        (
            "a token twice",
            set("tokenizer.ggml.tokens", 9, tokens(&eight)),
            "tokenizer.ggml.tokens[7]",
        ),
        (
            "tokens as numbers",
            set("tokenizer.ggml.tokens", 9, array(4, &[u32_of(1)])),
            "tokenizer.ggml.tokens",
        ),
        (
            "a token that is no UTF-8",
            set(
                "tokenizer.ggml.tokens",
                9,
                array(8, &[[vec![1, 0, 0, 0, 0, 0, 0, 0], vec![0x80]].concat()]),
            ),
            "tokens[0]",
        ),
        (
            "too few types",
            set("tokenizer.ggml.token_type", 9, array(5, &[u32_of(1)])),
            "token_type",
        ),
        (
            "a type of 9",
            set("tokenizer.ggml.token_type", 9, array(5, &[9, 1, 1, 1, 1, 1, 1, 1].map(u32_of))),
            "token_type[0]",
        ),
        ("no merges", remove("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
        ("a merge of one", set("tokenizer.ggml.merges", 9, tokens(&["a b", "ab"])), "merges[1]"),
        (
            "a merge of unknown tokens",
            set("tokenizer.ggml.merges", 9, tokens(&["a z"])),
            "merges[0]",
        ),
        ("a merge into no token", set("tokenizer.ggml.merges", 9, tokens(&["b a"])), "merges[0]"),
        ("a merge twice", set("tokenizer.ggml.merges", 9, tokens(&["a b", "a b"])), "merges[1]"),
    ]);
}

#[test]
fn tokenizers_of_other_kinds_are_refused() {
    check(vec![
        text("another kind", "tokenizer.ggml.model", "bert", "tokenizer.ggml.model"),
        ("no kind", remove("tokenizer.ggml.model"), "tokenizer.ggml.model"),
        text("an unknown pre-tokenizer", "tokenizer.ggml.pre", "tekken", "tokenizer.ggml.pre"),
        text("no scores", "tokenizer.ggml.model", "llama", "tokenizer.ggml.scores"),
        (
            "a score of NaN",
            lie(|raw| {
                raw.set("tokenizer.ggml.model", 8, string("llama"));
                raw.set(
                    "tokenizer.ggml.scores",
                    9,
                    array(6, &[f32::NAN; 8].map(|x| x.to_le_bytes().to_vec())),
                );
            }),
            "scores[0]",
        ),
        number("a begin beyond the vocabulary", "tokenizer.ggml.bos_token_id", 8, "bos token id"),
        number(
            "an end beyond the vocabulary",
            "tokenizer.ggml.eot_token_id",
            u32::MAX,
            "eos token id",
        ),
        (
            "a padding beyond 32 bits",
            set("tokenizer.ggml.padding_token_id", 10, vec![0xff; 8]),
            "padding_token_id",
        ),
        (
            "an end after every text",
            set("tokenizer.ggml.add_eos_token", 7, vec![1]),
            "add_eos_token",
        ),
        (
            "a space before a byte-level text",
            set("tokenizer.ggml.add_space_prefix", 7, vec![1]),
            "add_space_prefix",
        ),
        (
            "a begin that is not there",
            lie(|raw| {
                raw.remove("tokenizer.ggml.bos_token_id");
                raw.set("tokenizer.ggml.add_bos_token", 7, vec![1]);
            }),
            "bos token id",
        ),
        number("a template that is a number", "tokenizer.chat_template", 1, "chat_template"),
    ]);
}

#[test]
fn files_cut_anywhere_are_refused() {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("cut.gguf");
    let whole = Raw::small().bytes();
    // The last tensor's padding may be missing: its data ends 0 bytes before it here.
    for len in 0..whole.len() {
        put(&path, &whole[..len]);
        let message = read_all(&path).expect_err("a cut file").to_string();
        assert!(message.contains("cut.gguf"), "{len}: {message}");
    }
    meter.check();
}

#[test]
fn what_is_no_file_of_this_kind_is_refused() {
    let folder = scratch();
    let path = folder.path().join("x.gguf");
    for (bytes, field) in
        [(&b""[..], "form"), (b"GGU", "form"), (b"{}", "form"), (b"GGUF", "version")]
    {
        std::fs::write(&path, bytes).unwrap();
        let message = ModelFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("x.gguf") && message.contains(field), "{message}");
    }
    let absent = ModelFile::open(&folder.path().join("absent")).unwrap_err().to_string();
    assert!(absent.contains("absent") && absent.contains("check the path"), "{absent}");
    let inside = Gguf::open(folder.path()).unwrap_err().to_string();
    assert!(inside.contains("not a regular file"), "{inside}");
}
