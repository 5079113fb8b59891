//! A value of JSON as text again, without spaces and without ever being a tree: of many small
//! values that would take many times the bytes of its line. A string is what it says.

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The text of a value.
pub(super) struct JsonText(pub(super) String);

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut text = String::new();
        from.deserialize_any(Copied { to: &mut text, inside: false })?;
        Ok(JsonText(text))
    }
}

/// Copies a value to the end of a text; one that is not inside of another may be a bare string.
struct Copied<'t> {
    to: &'t mut String,
    inside: bool,
}

impl Copied<'_> {
    fn put<E: Error>(self, value: impl Serialize) -> Result<(), E> {
        self.to.push_str(&serde_json::to_string(&value).map_err(E::custom)?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Copied<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Copied<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a JSON value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.inside {
            return self.put(text);
        }
        self.to.push_str(text);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.put(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        self.to.push('[');
        let mut first = true;
        loop {
            let before = self.to.len();
            if !first {
                self.to.push(',');
            }
            if from.next_element_seed(Copied { to: self.to, inside: true })?.is_none() {
                self.to.truncate(before);
                self.to.push(']');
                return Ok(());
            }
            first = false;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        self.to.push('{');
        let mut first = true;
        loop {
            let before = self.to.len();
            if !first {
                self.to.push(',');
            }
            if from.next_key_seed(Copied { to: self.to, inside: true })?.is_none() {
                self.to.truncate(before);
                self.to.push('}');
                return Ok(());
            }
            self.to.push(':');
            from.next_value_seed(Copied { to: self.to, inside: true })?;
            first = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_value() {
        for (json, expected) in [
            (r#" [ {"role" : "a\"\u00e9\n" , "n": [ ] } , -1, 2.5, true, null, {} ] "#, None),
            (r#""[1, 2]""#, Some("[1, 2]")),
            (r#"["x"]"#, Some(r#"["x"]"#)),
            ("18446744073709551615", None),
        ] {
            let value: serde_json::Value = serde_json::from_str(json).expect(json);
            let found = serde_json::from_str::<JsonText>(json).expect(json).0;
            assert_eq!(found, expected.map_or(value.to_string(), str::to_owned));
        }
        assert!(serde_json::from_str::<JsonText>("[1").is_err());
    }
}
