//! The header of a safetensors file: written, and read with every claim checked
//! against the file's size before anything is sized by it.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use files::FixedFile;
use serde::de::{self, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use crate::NamedTensor;
use crate::error::LoadError;
use crate::misfit::quote;

/// The largest header accepted, as in the reference implementation of the format.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
pub(crate) const METADATA: &str = "__metadata__";
pub(crate) const PREFIX_BYTES: usize = 8;
pub(crate) const MAX_DIMENSIONS: usize = 32;

/// The values that the bytes of elements stand for.
pub(crate) type ToF32 = fn(&[u8]) -> Vec<f32>;

/// A stored element type of the safetensors format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// An unsigned integer of 8 bits.
    U8,
    /// A signed integer of 8 bits.
    I8,
    /// Float, 5 exponent and 2 mantissa bits.
    F8E5M2,
    /// Float, 4 exponent and 3 mantissa bits.
    F8E4M3,
    /// A signed integer of 16 bits.
    I16,
    /// An unsigned integer of 16 bits.
    U16,
    /// A float, IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// A signed integer of 32 bits.
    I32,
    /// An unsigned integer of 32 bits.
    U32,
    /// A float, IEEE 754 binary32.
    F32,
    /// A float, IEEE 754 binary64.
    F64,
    /// A signed integer of 64 bits.
    I64,
    /// An unsigned integer of 64 bits.
    U64,
}

const DTYPES: [(&str, Dtype, u64); 15] = [
    ("BOOL", Dtype::Bool, 1),
    ("U8", Dtype::U8, 1),
    ("I8", Dtype::I8, 1),
    ("F8_E5M2", Dtype::F8E5M2, 1),
    ("F8_E4M3", Dtype::F8E4M3, 1),
    ("I16", Dtype::I16, 2),
    ("U16", Dtype::U16, 2),
    ("F16", Dtype::F16, 2),
    ("BF16", Dtype::Bf16, 2),
    ("I32", Dtype::I32, 4),
    ("U32", Dtype::U32, 4),
    ("F32", Dtype::F32, 4),
    ("F64", Dtype::F64, 8),
    ("I64", Dtype::I64, 8),
    ("U64", Dtype::U64, 8),
];

impl fmt::Display for Dtype {
    /// The name the format gives the type, such as `BF16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            DTYPES.iter().find(|(_, dtype, _)| dtype == self).map_or("", |(name, _, _)| name),
        )
    }
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        DTYPES.iter().find(|(_, dtype, _)| *dtype == self).map_or(1, |&(_, _, bytes)| bytes)
    }

    /// What gives the values that bytes stand for; `None` for other types than F32, F16 and BF16.
    pub(crate) fn to_f32(self) -> Option<ToF32> {
        fn halves(bytes: &[u8], value: fn(u16) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|&b| value(u16::from_le_bytes(b))).collect()
        }
        match self {
            Dtype::F32 => {
                Some(|bytes| bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            Dtype::F16 => Some(|bytes| halves(bytes, f16_to_f32)),
            Dtype::Bf16 => Some(|bytes| halves(bytes, bf16_to_f32)),
            _ => None,
        }
    }

    /// Place and value of the first of these elements that is NaN or infinite.
    pub(crate) fn not_finite(self, bytes: &[u8]) -> Option<(usize, f32)> {
        let (size, to_f32) = (self.bytes() as usize, self.to_f32()?);
        let mut parts = bytes.chunks(size * 4096).enumerate();
        parts.find_map(|(i, part)| {
            let values = to_f32(part);
            let at = values.iter().position(|value| !value.is_finite())?;
            Some((i * 4096 + at, values[at]))
        })
    }
}

fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// IEEE 754 binary16 to binary32: sign, 5 exponent bits of bias 15, 10 mantissa bits.
fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let (exponent, mantissa) = ((bits >> 10) & 0x1f, bits & 0x3ff);
    let magnitude = match exponent {
        // Subnormal: mantissa * 2^-24, exact in f32.
        0 => (mantissa as f32 * (-24_f32).exp2()).to_bits(),
        31 => 0x7f80_0000 | (mantissa << 13),
        _ => ((exponent + 127 - 15) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// One tensor of a file; `begin..end` are its bytes, counted from the start of the file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// `product(shape) * element_bytes`, `None` if any step of it exceeds 64 bits.
pub(crate) fn byte_size(shape: &[usize], element_bytes: u64) -> Option<u64> {
    shape.iter().try_fold(element_bytes, |size, &n| size.checked_mul(u64::try_from(n).ok()?))
}

/// Length prefix and header for tensors whose shapes were checked, padded with blanks so that
/// the data starts at a multiple of 8 bytes. `Err` is the size of a header above the limit.
pub(crate) fn build(tensors: &[NamedTensor<'_>]) -> Result<Vec<u8>, u64> {
    // Readers of other projects refuse a file whose metadata does not name the layout "pt".
    let mut header = format!("{{\"{METADATA}\":{{\"format\":\"pt\"}}");
    let mut begin = 0_u64;
    for tensor in tensors {
        let end = begin + tensor.data.size();
        let dtype = tensor.data.dtype();
        let name = serde_json::Value::from(tensor.name.as_str());
        let shape = serde_json::Value::from(tensor.shape.as_slice());
        header += &format!(
            ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}"
        );
        begin = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(PREFIX_BYTES) {
        header.push(' ');
    }
    let len = header.len() as u64;
    if len > MAX_HEADER_BYTES {
        return Err(len);
    }
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes)
}

/// Reads and checks the header of a whole file; the tensors come in the order of their data.
pub(crate) fn read(
    path: &Path,
    file: &FixedFile,
    next: &'static str,
) -> Result<Vec<StoredTensor>, LoadError> {
    let invalid = |field: &str, expected: String, found: String| {
        LoadError::invalid(path, field, expected, found, next)
    };
    let length = file.length();
    if length < PREFIX_BYTES as u64 {
        let found = format!("a file of {length} bytes");
        return Err(invalid("header length", "8 bytes".into(), found));
    }
    let mut prefix = [0; PREFIX_BYTES];
    file.read_at(0, &mut prefix).map_err(|e| LoadError::reading(path, e))?;
    let len = u64::from_le_bytes(prefix);
    let limit = MAX_HEADER_BYTES.min(length - PREFIX_BYTES as u64);
    if len > limit {
        return Err(invalid(
            "header length",
            format!("at most {limit} in a file of {length} bytes"),
            len.to_string(),
        ));
    }
    // Below the limit, so it is within the address space.
    let mut header = vec![0; len as usize];
    file.read_at(PREFIX_BYTES as u64, &mut header).map_err(|e| LoadError::reading(path, e))?;
    let header = header.as_slice();
    if header.first() != Some(&b'{') {
        let found =
            header.first().map_or("an empty header".into(), |byte| format!("byte 0x{byte:02x}"));
        return Err(invalid("header", "'{' as its first byte".into(), found));
    }
    let context = RefCell::new(String::from("header"));
    let mut json = serde_json::Deserializer::from_slice(header);
    let raw = HeaderSeed(&context).deserialize(&mut json).and_then(|raw| json.end().map(|()| raw));
    let raw = raw.map_err(|e| {
        invalid(&context.borrow(), "the JSON of a safetensors header".into(), e.to_string())
    })?;
    let base = PREFIX_BYTES + header.len();
    let mut tensors = raw
        .into_iter()
        .map(|raw| check(path, raw, length - base as u64, base, next))
        .collect::<Result<Vec<_>, _>>()?;
    check_names(path, &tensors, next)?;
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
    check_layout(path, &tensors, length as usize, base, next)?;
    Ok(tensors)
}

fn check(
    path: &Path,
    raw: RawInfo,
    data_len: u64,
    base: usize,
    next: &'static str,
) -> Result<StoredTensor, LoadError> {
    let invalid = |field: &str, expected: String, found: String| {
        LoadError::invalid(
            path,
            format!("tensor {}: {field}", quote(&raw.name)),
            expected,
            found,
            next,
        )
    };
    let Some(&(_, dtype, bytes)) = DTYPES.iter().find(|(name, _, _)| *name == raw.dtype) else {
        let known: Vec<_> = DTYPES.iter().map(|(name, _, _)| *name).collect();
        return Err(invalid("dtype", format!("one of {}", known.join(", ")), quote(&raw.dtype)));
    };
    let Some(size) = byte_size(&raw.shape, bytes) else {
        return Err(invalid("shape", "a size below 2^64 bytes".into(), format!("{:?}", raw.shape)));
    };
    let [begin, end] = raw.offsets;
    if begin > end || end > data_len {
        return Err(invalid(
            "data_offsets",
            format!("begin <= end <= {data_len}"),
            format!("[{begin}, {end}]"),
        ));
    }
    if end - begin != size {
        let expected = format!("{size} bytes for {dtype} of shape {:?}", raw.shape);
        return Err(invalid(
            "data_offsets",
            expected,
            format!("[{begin}, {end}], {} bytes", end - begin),
        ));
    }
    // Both are at most data_len, the length of a slice in memory.
    let (begin, end) = (base + begin as usize, base + end as usize);
    Ok(StoredTensor { name: raw.name, dtype, shape: raw.shape, begin, end })
}

fn check_names(path: &Path, tensors: &[StoredTensor], next: &'static str) -> Result<(), LoadError> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(LoadError::invalid(
            path,
            format!("tensor {}", quote(pair[0])),
            "each name once",
            "the name twice",
            next,
        )),
    }
}

fn check_layout(
    path: &Path,
    sorted: &[StoredTensor],
    file_len: usize,
    base: usize,
    next: &'static str,
) -> Result<(), LoadError> {
    let mut cursor = base;
    for tensor in sorted {
        if tensor.begin != cursor {
            let field = format!("tensor {}: data_offsets", quote(&tensor.name));
            let expected = format!("a begin of {}, where the data before it ends", cursor - base);
            let found = format!(
                "{}, which {}",
                tensor.begin - base,
                if tensor.begin < cursor { "overlaps" } else { "leaves a gap" }
            );
            return Err(LoadError::invalid(path, field, expected, found, next));
        }
        cursor = tensor.end;
    }
    if cursor == file_len {
        return Ok(());
    }
    let found = format!("{} bytes", file_len - base);
    Err(LoadError::invalid(
        path,
        "data",
        format!("{} bytes as in the header", cursor - base),
        found,
        next,
    ))
}

struct RawInfo {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    offsets: [u64; 2],
}

// serde's own errors do not say where they arose, so each seed notes the field it is about to read.
struct HeaderSeed<'c>(&'c RefCell<String>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Vec<RawInfo>;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Vec<RawInfo>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                *self.0.borrow_mut() = METADATA.into();
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("it is given twice"));
                }
                map.next_value::<std::collections::BTreeMap<String, String>>()?;
            } else {
                *self.0.borrow_mut() = format!("tensor {}", quote(&name));
                tensors.push(map.next_value_seed(InfoSeed { context: self.0, name })?);
            }
            *self.0.borrow_mut() = "header".into();
        }
        Ok(tensors)
    }
}

struct InfoSeed<'c> {
    context: &'c RefCell<String>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for InfoSeed<'_> {
    type Value = RawInfo;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<RawInfo, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for InfoSeed<'_> {
    type Value = RawInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawInfo, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let tensor = self.context.borrow().clone();
        let once =
            |first: bool| if first { Ok(()) } else { Err(A::Error::custom("it is given twice")) };
        while let Some(key) = map.next_key::<String>()? {
            *self.context.borrow_mut() =
                format!("{tensor}: {}", if key.len() < 40 { &key } else { "a key" });
            match key.as_str() {
                "dtype" => once(dtype.replace(map.next_value()?).is_none())?,
                "shape" => once(shape.replace(map.next_value_seed(ShapeSeed)?).is_none())?,
                "data_offsets" => once(offsets.replace(map.next_value()?).is_none())?,
                _ => return Err(A::Error::custom("no such field in the format")),
            }
            self.context.borrow_mut().clone_from(&tensor);
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        let shape = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        let offsets = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        Ok(RawInfo { name: self.name, dtype, shape, offsets })
    }
}

struct ShapeSeed;

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<Vec<usize>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = seq.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom("more than 32 dimensions"));
            }
            shape.push(size);
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn every_half_converts_to_its_defined_value() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let (exponent, mantissa) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
            let found = f16_to_f32(bits);
            if exponent == 31 {
                let kind = if mantissa == 0.0 {
                    f64::from(found) == sign * f64::INFINITY
                } else {
                    found.is_nan()
                };
                assert!(kind, "{bits:#06x} gives {found}");
                continue;
            }
            let value = match exponent {
                0 => sign * mantissa * 2_f64.powi(-24),
                _ => sign * (1.0 + mantissa / 1024.0) * 2_f64.powi(exponent - 15),
            };
            assert_eq!(f64::from(found).to_bits(), value.to_bits(), "{bits:#06x}");
        }
    }
}
