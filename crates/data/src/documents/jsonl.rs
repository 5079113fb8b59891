//! JSON Lines, plain or packed with gzip or zstd: one object per line with the text in one field.

use super::json_text::JsonText;
use super::{Bad, Lost, Packing, ReadOptions, Row, Rows, too_long};
use crate::DataError;
use flate2::bufread::MultiGzDecoder;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A line that is too long is read over up to this many times the longest row.
const MOST_PASSED: u64 = 16;

pub(super) fn open(
    path: &Path,
    packing: Packing,
    options: &ReadOptions,
) -> Result<Rows, DataError> {
    let file =
        BufReader::with_capacity(1 << 18, files::open(path).map_err(DataError::io("read", path))?);
    let lines: Box<dyn BufRead + Send> = match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file))),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file)
                .map_err(DataError::io("unpack", path))?;
            Box::new(BufReader::with_capacity(1 << 18, decoder))
        }
    };
    Ok(Box::new(Lines {
        lines,
        text_field: options.text_field.clone(),
        messages: options.messages,
        max_row: options.max_row,
        row: 0,
        ended: false,
    }))
}

struct Lines {
    lines: Box<dyn BufRead + Send>,
    text_field: String,
    /// Whether that field may hold any JSON, which is the text then.
    messages: bool,
    max_row: usize,
    row: u64,
    ended: bool,
}

impl Lines {
    fn line(&mut self) -> Result<Option<Vec<u8>>, Bad> {
        loop {
            self.row += 1;
            let mut line = Vec::new();
            let most = self.max_row as u64 + 1;
            (&mut self.lines).take(most).read_until(b'\n', &mut line).map_err(|e| {
                Bad::new(self.row, "line", "a readable, complete file", e.to_string()).fatal()
            })?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() > self.max_row {
                let bad = too_long(self.row, "line", self.max_row);
                return Err(if self.pass_line(&line) { bad } else { bad.fatal() });
            }
            if self.row == 1 {
                files::skip_mark(&mut line);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// Reads over the rest of a line that begins with `line`; whether there is one behind it. A
    /// packed line may be without an end.
    fn pass_line(&mut self, line: &[u8]) -> bool {
        let most = (self.max_row as u64).saturating_mul(MOST_PASSED);
        let mut rest = (&mut self.lines).take(most);
        line.ends_with(b"\n") || rest.skip_until(b'\n').is_ok() && rest.limit() > 0
    }

    /// The fields of a line that are wanted.
    fn fields(&self, text: &str) -> Result<Fields, serde_json::Error> {
        let wanted = Wanted { text_field: &self.text_field, whole: self.messages };
        let mut from = serde_json::Deserializer::from_str(text);
        let fields = wanted.deserialize(&mut from)?;
        from.end().map(|()| fields)
    }

    fn parse(&self, line: &[u8]) -> Result<Row, Bad> {
        let text = std::str::from_utf8(line).map_err(|e| {
            let found = format!("a broken sequence at byte {} of the line", e.valid_up_to());
            Bad::new(self.row, "line", "UTF-8", found)
        })?;
        // Python writes numbers that JSON has no word for; a field that nobody reads may hold one.
        let fields = self.fields(text).or_else(|error| match without_strange_numbers(text) {
            Some(text) => self.fields(&text).map_err(|_| error),
            None => Err(error),
        });
        let fields =
            fields.map_err(|e| Bad::new(self.row, "line", "one JSON object", e.to_string()))?;
        let Fields { text, source, license, licence } = fields;
        let text = match text {
            Some(Field::Text(text)) => text,
            other => {
                let mut found = other.map_or("no such field", |field| field.kind()).to_owned();
                if !self.messages && is_conversation(line) {
                    found.push_str(TALKS);
                }
                return Err(Bad::new(
                    self.row,
                    &format!("field {:?}", self.text_field),
                    "a string",
                    found,
                ));
            }
        };
        let license = license.and_then(Field::text).or(licence.and_then(Field::text));
        Ok(Row { number: self.row, source: source.and_then(Field::text), license, text })
    }
}

/// What is said of a row of a conversation where texts are read.
const TALKS: &str = " beside \"messages\" (data build --chat reads conversations)";

/// Whether a line holds a list of messages, as `--chat` reads it.
fn is_conversation(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Talk {
        #[allow(dead_code, reason = "that it is a list is all that is asked")]
        messages: Vec<IgnoredAny>,
    }
    serde_json::from_slice::<Talk>(line).is_ok()
}

/// A line with `null` in the place of NaN and the infinities, as Python's `json` writes them;
/// `None` where it has none.
fn without_strange_numbers(line: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let (mut out, mut kept, mut at) = (String::new(), 0, 0);
    let bytes = line.as_bytes();
    let mut inside = false;
    while at < bytes.len() {
        let word = WORDS.iter().find(|word| !inside && line[at..].starts_with(**word));
        if let Some(word) = word {
            out.push_str(&line[kept..at]);
            out.push_str("null");
            at += word.len();
            kept = at;
            continue;
        }
        match bytes[at] {
            b'"' => inside = !inside,
            b'\\' if inside => at += 1,
            _ => {}
        }
        // To the next character: a backslash may stand before one of several bytes.
        at += 1;
        while at < bytes.len() && !line.is_char_boundary(at) {
            at += 1;
        }
    }
    (kept > 0).then(|| out + &line[kept..])
}

/// What a row's fields hold: the texts, and of anything else what it is.
enum Field {
    Text(String),
    Other(&'static str),
}

impl Field {
    /// A text that is not empty.
    fn text(self) -> Option<String> {
        match self {
            Field::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Field::Text(_) => "a string",
            Field::Other(kind) => kind,
        }
    }
}

/// The fields of a row that are wanted. The others are read over: a value of many small ones takes
/// many times the bytes of its line.
#[derive(Default)]
struct Fields {
    text: Option<Field>,
    source: Option<Field>,
    license: Option<Field>,
    licence: Option<Field>,
}

/// Reads [`Fields`], given the name of the text's, which may be `whole` JSON.
struct Wanted<'n> {
    text_field: &'n str,
    whole: bool,
}

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Fields, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Fields;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("one JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = from.next_key::<Cow<'_, str>>()? {
            let place = match name.as_ref() {
                name if name == self.text_field && self.whole => {
                    fields.text = Some(Field::Text(from.next_value::<JsonText>()?.0));
                    continue;
                }
                name if name == self.text_field => &mut fields.text,
                "source" => &mut fields.source,
                "license" => &mut fields.license,
                "licence" => &mut fields.licence,
                _ => {
                    from.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = Some(from.next_value()?);
        }
        Ok(fields)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Other("null"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other("a truth value"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Field, A::Error> {
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Field, A::Error> {
        while from.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object"))
    }
}

impl Iterator for Lines {
    type Item = Result<Row, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.line() {
            Ok(None) => {
                self.ended = true;
                None
            }
            Ok(Some(line)) => Some(self.parse(&line)),
            Err(bad) => {
                self.ended = bad.lost != Lost::Nothing;
                Some(Err(bad))
            }
        }
    }
}
