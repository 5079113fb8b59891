//! Request bodies as values: duplicate keys refused, depth and number of values bounded, token
//! lists kept compact.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::cell::Cell;
use std::fmt;

/// Values in one body that are not token ids; a body with more is an attack on memory.
const MOST_VALUES: usize = 100_000;

/// A value of a request: integers apart from other numbers, lists of token ids apart from others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(i64),
    /// A number with a fraction or exponent, or an integer beyond 64 bits.
    Number(f64),
    Text(String),
    /// A list of integers that fit 32 bits, or an empty list.
    Ids(Vec<u32>),
    /// A list with anything else in it; it is not empty.
    List(Vec<Json>),
    /// Keys are unique, in the order of the text.
    Map(Vec<(String, Json)>),
}

impl Json {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// A text that is no JSON, has duplicate keys, more than 127 levels, or too many values; says
    /// where.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let budget = Cell::new(MOST_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Seed(&budget).deserialize(&mut reader).map_err(|e| e.to_string())?;
        reader.end().map_err(|e| e.to_string())?;
        Ok(value)
    }

    /// The value of a key, if this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Map(entries) => {
                entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number as an integer, if it is one without loss.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match *self {
            Json::Int(value) => Some(value),
            Json::Number(value) if value.fract() == 0.0 && value.abs() < 9.2e18 => {
                Some(value as i64)
            }
            _ => None,
        }
    }

    pub(crate) fn as_number(&self) -> Option<f64> {
        match *self {
            Json::Int(value) => Some(value as f64),
            Json::Number(value) => Some(value),
            _ => None,
        }
    }

    /// Calls `each` with every string in it that is no key.
    pub(crate) fn each_text(&self, each: &mut dyn FnMut(&str)) {
        match self {
            Json::Text(text) => each(text),
            Json::List(items) => items.iter().for_each(|item| item.each_text(each)),
            Json::Map(entries) => entries.iter().for_each(|(_, value)| value.each_text(each)),
            _ => (),
        }
    }

    /// Puts what `change` makes of it in the place of every string that is no key.
    pub(crate) fn change_texts(&mut self, change: &dyn Fn(&str) -> String) {
        match self {
            Json::Text(text) => *text = change(text),
            Json::List(items) => items.iter_mut().for_each(|item| item.change_texts(change)),
            Json::Map(entries) => {
                entries.iter_mut().for_each(|(_, value)| value.change_texts(change));
            }
            _ => (),
        }
    }

    /// The JSON text, cut at 64 bytes.
    pub(crate) fn short(&self) -> String {
        let mut cut = Cut(String::new());
        // Writing stops with an error as soon as enough is there.
        let _ = serde_json::to_writer(&mut cut, self);
        cut.0
    }
}

/// Collects 64 bytes, then three dots, then refuses.
struct Cut(String);

impl std::io::Write for Cut {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.push_str(&String::from_utf8_lossy(bytes));
        if self.0.len() <= 64 {
            return Ok(bytes.len());
        }
        self.0 = cut(&self.0);
        Err(std::io::Error::other("enough"))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `text`, cut at 64 bytes with three dots in place of the rest.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= 64 {
        return text.to_owned();
    }
    let end = (0..=61).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => to.serialize_unit(),
            Json::Bool(value) => to.serialize_bool(*value),
            Json::Int(value) => to.serialize_i64(*value),
            Json::Number(value) => to.serialize_f64(*value),
            Json::Text(text) => to.serialize_str(text),
            Json::Ids(ids) => to.collect_seq(ids),
            Json::List(items) => to.collect_seq(items),
            Json::Map(entries) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// Of values that this program wrote itself, any number is read.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Seed(&Cell::new(usize::MAX)).deserialize(from)
    }
}

struct Seed<'b>(&'b Cell<usize>);

impl Seed<'_> {
    fn charge<E: serde::de::Error>(&self, values: usize) -> Result<(), E> {
        match self.0.get().checked_sub(values) {
            Some(rest) => {
                self.0.set(rest);
                Ok(())
            }
            None => Err(E::custom(format!("more than {MOST_VALUES} values"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number(value as f64), Json::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut ids: Vec<u32> = Vec::new();
        let mut items: Vec<Json> = Vec::new();
        while let Some(item) = from.next_element_seed(Seed(self.0))? {
            // 322.0 is the integer 322, as JSON schemas have it.
            let id = item.as_int().and_then(|id| u32::try_from(id).ok());
            match (id, item) {
                (Some(id), _) if items.is_empty() => ids.push(id),
                (_, item) => {
                    self.charge(1 + ids.len())?;
                    items.extend(ids.drain(..).map(|id| Json::Int(i64::from(id))));
                    items.push(item);
                }
            }
        }
        Ok(if items.is_empty() { Json::Ids(ids) } else { Json::List(items) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        while let Some(key) = from.next_key::<String>()? {
            self.charge(1)?;
            let value = from.next_value_seed(Seed(self.0))?;
            entries.push((key, value));
        }
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(A::Error::custom(format!("duplicate key `{}`", cut(pair[0]))));
        }
        Ok(Json::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_their_texts() {
        let text = r#"{"a":[1,2,3],"b":[1,"x",-1,1.5,[]],"c":{"d":null,"e":true}}"#;
        let value = Json::parse(text.as_bytes()).unwrap();
        assert_eq!(value.get("a"), Some(&Json::Ids(vec![1, 2, 3])));
        assert_eq!(serde_json::to_string(&value).unwrap(), text);
        assert_eq!(value.short(), text);
        let long = Json::Ids((0..1_000_000).collect());
        assert_eq!(long.short().len(), 64);
        assert!(long.short().ends_with("..."));
        assert_eq!(
            Json::parse(b"[1,4294967296]").unwrap(),
            Json::List(vec![Json::Int(1), Json::Int(1 << 32)])
        );
        assert_eq!(Json::parse(b"7.0").unwrap().as_int(), Some(7));
        assert_eq!(Json::parse(b"7.5").unwrap().as_int(), None);
    }

    #[test]
    fn hostile_texts_are_refused() {
        let deep = "[".repeat(10_000);
        let many = format!("[{}[]]", "[],".repeat(MOST_VALUES));
        let cases: [(&[u8], &str); 8] = [
            (b"", "EOF"),
            (b"{\"a\":1,\"b\":2,\"a\":3}", "duplicate key `a`"),
            (b"{\"x\":{\"a\":1,\"\\u0061\":3}}", "duplicate key `a`"),
            (b"1 2", "trailing"),
            (b"\"\xff\"", "unicode"),
            (b"1e400", "range"),
            (deep.as_bytes(), "recursion limit"),
            (many.as_bytes(), "more than"),
        ];
        for (text, part) in cases {
            let error = Json::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn cutting_keeps_characters_whole() {
        assert_eq!(cut("short"), "short");
        let text = "\u{e9}".repeat(60);
        assert_eq!(cut(&text), format!("{}...", "\u{e9}".repeat(30)));
    }
}
