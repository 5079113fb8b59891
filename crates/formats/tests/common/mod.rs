//! A small Llama model with a byte-level tokenizer, and GGUF files byte by byte, honest or not.
#![allow(dead_code)]

use data::SpecialTokens;
use formats::gguf::{GgufOptions, GgufWeightType, export};
use formats::hf::{FolderOptions, HfWeightType};
use formats::{Additions, ArchConfig, Architecture, Result, TensorRole};
use serde_json::{Value, json};
use std::path::Path;

/// One block, 8 tokens: the whole file has 3 kB.
pub(crate) fn small() -> ArchConfig {
    ArchConfig {
        vocab: 8,
        width: 4,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        ffn: 6,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        context: 16,
        tied: false,
        rope_scaling: None,
        additions: Additions::default(),
        experts: None,
    }
}

/// Two blocks with rows of whole Q8_0 blocks; heads times head_dim is not the width.
pub(crate) fn medium() -> ArchConfig {
    ArchConfig {
        vocab: 300,
        width: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 96,
        rope_theta: 100_000.0,
        tied: true,
        context: 128,
        ..small()
    }
}

/// Values of a linear congruential generator seeded by the role's name, between -1 and 1.
pub(crate) fn weights(settings: &ArchConfig) -> impl Fn(TensorRole) -> Result<Vec<f32>> {
    let settings = settings.clone();
    move |role| {
        let mut state =
            hf_name(role).bytes().fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        Ok((0..role.shape(&settings).iter().product()).map(|_| next()).collect())
    }
}

pub(crate) fn special() -> SpecialTokens {
    SpecialTokens {
        bos: Some(0),
        eos: vec![1],
        pad: Some(1),
        chat_template: Some("{{ messages }}".into()),
        add_bos: false,
    }
}

pub(crate) fn added(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}

fn tokenizer(tokens: &[String], merges: &[(&str, &str)]) -> Vec<u8> {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let json = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<s>"), added(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    json.to_string().into_bytes()
}

/// Eight tokens, some of them letters.
pub(crate) fn small_tokenizer() -> Vec<u8> {
    let tokens = ["<s>", "</s>", "a", "b", "ab", "\u{120}", "\u{120}a", "c"].map(str::to_owned);
    tokenizer(&tokens, &[("a", "b"), ("\u{120}", "a")])
}

/// Two specials, all bytes, a few merges: 264 tokens.
pub(crate) fn byte_tokenizer() -> Vec<u8> {
    let mut tokens: Vec<String> = vec!["<s>".into(), "</s>".into()];
    tokens.extend(alphabet());
    let merges =
        [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u{120}", "w"), ("1", "2")];
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    tokenizer(&tokens, &merges)
}

/// The letters of GPT-2's byte alphabet in the order of the bytes.
pub(crate) fn alphabet() -> Vec<String> {
    let printable =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut above = 255;
    let mut letter = |b: u32| {
        let code = if printable(b) {
            b
        } else {
            {
                above += 1;
                above
            }
        };
        char::from_u32(code).unwrap().to_string()
    };
    (0..256).map(&mut letter).collect()
}

pub(crate) fn export_to(
    path: &Path,
    settings: &ArchConfig,
    kind: GgufWeightType,
    tokenizer: &[u8],
) -> Result<()> {
    let special = special();
    let options = gguf_options(kind, tokenizer, &special);
    export(path, settings, &weights(settings), &options)
}

/// The architecture of every file here.
pub(crate) fn llama() -> &'static Architecture {
    Architecture::that_holds(&small(), true, None).unwrap()
}

pub(crate) fn hf_name(role: TensorRole) -> String {
    llama().hugging_face_tensor(role).unwrap()
}

pub(crate) fn gguf_name(role: TensorRole) -> String {
    llama().gguf_tensor(role).unwrap()
}

pub(crate) fn folder_options(weights: HfWeightType, special: &SpecialTokens) -> FolderOptions<'_> {
    FolderOptions { architecture: llama(), weights, special }
}

pub(crate) fn gguf_options<'a>(
    weights: GgufWeightType,
    tokenizer: &'a [u8],
    special: &'a SpecialTokens,
) -> GgufOptions<'a> {
    GgufOptions { architecture: llama(), name: "small", weights, tokenizer, special }
}

/// A GGUF file part by part, so that any part can lie.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) magic: Vec<u8>,
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    /// Key, type code, value bytes.
    pub(crate) entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<RawTensor>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) name: Vec<u8>,
    pub(crate) dimensions: Option<u32>,
    /// Fastest first, as in the file.
    pub(crate) sizes: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.bytes());
    out
}

pub(crate) fn array(item: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let mut out = item.to_le_bytes().to_vec();
    out.extend((items.len() as u64).to_le_bytes());
    out.extend(items.concat());
    out
}

impl Raw {
    /// The small model, with its tokenizer.
    pub(crate) fn small() -> Raw {
        let settings = small();
        let u32_of = |n: usize| (n as u32).to_le_bytes().to_vec();
        let mut raw = Raw {
            magic: b"GGUF".to_vec(),
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        };
        raw.set("general.architecture", 8, string("llama"));
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 16),
            ("embedding_length", 4),
            ("feed_forward_length", 6),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 2),
            ("vocab_size", 8),
        ] {
            raw.set(&format!("llama.{key}"), 4, u32_of(value));
        }
        raw.set("llama.attention.layer_norm_rms_epsilon", 6, 1e-5_f32.to_le_bytes().to_vec());
        raw.set("llama.rope.freq_base", 6, 10_000_f32.to_le_bytes().to_vec());
        raw.set("tokenizer.ggml.model", 8, string("gpt2"));
        raw.set("tokenizer.ggml.pre", 8, string("smollm"));
        let tokens = ["<s>", "</s>", "a", "b", "ab", "\u{120}", "\u{120}a", "c"].map(string);
        raw.set("tokenizer.ggml.tokens", 9, array(8, &tokens));
        raw.set("tokenizer.ggml.token_type", 9, array(5, &[3, 3, 1, 1, 1, 1, 1, 1].map(u32_of)));
        raw.set("tokenizer.ggml.merges", 9, array(8, &["a b", "\u{120} a"].map(string)));
        raw.set("tokenizer.ggml.bos_token_id", 4, u32_of(0));
        raw.set("tokenizer.ggml.eos_token_id", 4, u32_of(1));
        let weights = weights(&settings);
        for role in TensorRole::all(&settings) {
            let sizes = role.shape(&settings).iter().rev().map(|&n| n as u64).collect();
            raw.tensors.push(RawTensor {
                name: gguf_name(role).into_bytes(),
                dimensions: None,
                sizes,
                kind: 0,
                offset: raw.data.len() as u64,
            });
            raw.data.extend(weights(role).unwrap().iter().flat_map(|x| x.to_le_bytes()));
            raw.data.resize(raw.data.len().next_multiple_of(32), 0);
        }
        raw
    }

    /// Sets or adds a setting.
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        match self.entries.iter_mut().find(|entry| entry.0 == key.as_bytes()) {
            Some(entry) => (entry.1, entry.2) = (kind, value),
            None => self.entries.push((key.as_bytes().to_vec(), kind, value)),
        }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.retain(|entry| entry.0 != key.as_bytes());
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut RawTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).unwrap()
    }

    /// Everything before the data, unpadded.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.clone();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend((tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            out.extend(tensor.dimensions.unwrap_or(tensor.sizes.len() as u32).to_le_bytes());
            tensor.sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}
