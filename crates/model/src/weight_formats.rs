//! Which weight of a model is rounded to which number format.

use std::fmt;
use std::str::FromStr;

use ops::{Format, QuantError};

use crate::params::ParamSpec;
use crate::pattern::{self, PatternError};

/// The most exceptions by name: each is compared with each weight.
const EXCEPTIONS: usize = 256;

/// The name of weights that are not rounded.
const F32: &str = "f32";

/// One format for every weight that can be rounded, and others by name.
///
/// As text: a format, then `PATTERN=FORMAT` for names of the parameter table, separated by commas,
/// as in `int4,embed=bf16,layers.0.*=f32`. In a pattern `*` stands for any characters. Of patterns
/// that fit the same weight the last one counts. Which weights can be rounded, and that embedding
/// and head keep 8 bits in the formats of 4, is the business of [`ParamSpec::rounded`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightFormats {
    /// The format of all weights that no pattern fits; none leaves them in f32.
    all: Option<Format>,
    by_name: Vec<NamedFormat>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedFormat {
    pattern: String,
    format: Option<Format>,
}

/// Formats that cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightFormatError {
    /// A name that is no format, or a matrix that does not fit its format.
    #[error("{0}")]
    Format(#[from] QuantError),
    /// A rule whose pattern cannot be used.
    #[error("weight formats: {0}")]
    Pattern(#[from] PatternError),
    /// More exceptions than there may be.
    #[error(
        "weight formats: expected at most {EXCEPTIONS} exceptions by name; use patterns with *"
    )]
    Many,
    /// A part of the text that is neither.
    #[error(
        "weight formats: expected one format, then PATTERN=FORMAT for each exception, found \
         \"{found}\"; write it like int4,embed=bf16"
    )]
    Text {
        /// The beginning of the part.
        found: String,
    },
}

impl WeightFormats {
    /// Whether every weight stays in f32.
    pub fn is_f32(&self) -> bool {
        self.all.is_none() && self.by_name.iter().all(|rule| rule.format.is_none())
    }

    /// What `spec` is rounded to; none leaves it in f32.
    pub fn of(&self, spec: &ParamSpec) -> Option<Format> {
        let rule = self.by_name.iter().rev().find(|rule| pattern::fits(&rule.pattern, &spec.name));
        let format = rule.map_or(self.all, |rule| rule.format);
        format.and_then(|format| spec.rounded(format))
    }

    /// # Errors
    /// A pattern that fits no weight of the `table` that can be rounded, or a name whose weight is
    /// not kept in so few bits.
    pub fn check(&self, table: &[ParamSpec]) -> Result<(), WeightFormatError> {
        let can_be_rounded = table.iter().filter(|spec| spec.can_be_rounded());
        let names: Vec<&str> = can_be_rounded.map(|spec| spec.name.as_str()).collect();
        for rule in &self.by_name {
            pattern::check(&rule.pattern, &names)?;
            let named = table.iter().find(|spec| spec.name == rule.pattern);
            if let (Some(spec), Some(format)) = (named, rule.format)
                && spec.rounded(format) != Some(format)
            {
                let expected = format!("8 bits or more for {}, which every token meets", spec.name);
                let found = format!("{}={format}", rule.pattern);
                return Err(PatternError { found, expected }.into());
            }
        }
        Ok(())
    }
}

impl From<Format> for WeightFormats {
    fn from(format: Format) -> Self {
        Self { all: Some(format), by_name: Vec::new() }
    }
}

impl FromStr for WeightFormats {
    type Err = WeightFormatError;

    fn from_str(text: &str) -> Result<Self, WeightFormatError> {
        let mut parts = text.split(',').map(str::trim);
        let mut formats = Self { all: parse(parts.next().unwrap_or_default())?, by_name: vec![] };
        for part in parts {
            if formats.by_name.len() == EXCEPTIONS {
                return Err(WeightFormatError::Many);
            }
            let Some((pattern, format)) = part.split_once('=') else {
                let found = part.chars().take(40).collect();
                return Err(WeightFormatError::Text { found });
            };
            let (pattern, format) = (pattern.trim().to_owned(), parse(format.trim())?);
            formats.by_name.push(NamedFormat { pattern, format });
        }
        Ok(formats)
    }
}

fn parse(name: &str) -> Result<Option<Format>, WeightFormatError> {
    if name == F32 { Ok(None) } else { Ok(Some(name.parse()?)) }
}

impl fmt::Display for WeightFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, self.all)?;
        self.by_name.iter().try_for_each(|rule| {
            write!(f, ",{}=", rule.pattern)?;
            write_name(f, rule.format)
        })
    }
}

fn write_name(f: &mut fmt::Formatter<'_>, format: Option<Format>) -> fmt::Result {
    match format {
        None => f.write_str(F32),
        Some(format) => write!(f, "{format}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::table::specs;

    fn table() -> Vec<ParamSpec> {
        let config =
            ModelConfig { vocab_size: 64, tie_embeddings: false, ..ModelConfig::default() };
        specs(&config, &config.check().expect("legal"))
    }

    #[test]
    fn the_last_pattern_that_fits_counts() {
        let text = "int8,layers.*=bf16,*.query=f32,layers.1.query=int4";
        let formats: WeightFormats = text.parse().expect("legal");
        assert_eq!(formats.to_string(), text);
        let names = |name: &str| {
            let all = table();
            let spec = all.iter().find(|spec| spec.name == name).expect(name);
            formats.of(spec).map_or("f32".to_owned(), |format| format.to_string())
        };
        for (name, expected) in [
            ("embed", "int8"),
            ("head", "int8"),
            ("layers.0.down", "bf16"),
            ("layers.0.query", "f32"),
            ("layers.1.query", "int4"),
            ("layers.0.ffn_norm.0", "f32"),
        ] {
            assert_eq!(names(name), expected, "{name}");
        }
        formats.check(&table()).expect("every pattern fits");
    }

    #[test]
    fn embedding_and_head_keep_eight_bits() {
        let formats: WeightFormats = "f32,*=int4".parse().expect("legal");
        assert!(!formats.is_f32());
        for spec in table().iter().filter(|spec| spec.can_be_rounded()) {
            let expected = if spec.name.starts_with("layers.") { "int4" } else { "int8" };
            let found = formats.of(spec).map(|format| format.to_string());
            assert_eq!(found.as_deref(), Some(expected), "{}", spec.name);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, needle) in [
            ("", "expected"),
            ("int7", "int7"),
            ("int8,bf16", "PATTERN=FORMAT"),
            ("int8,head=", "unknown"),
            ("int8,head=int9", "int9"),
            ("head=int8", "head=int8"),
            (&format!("int8{}", ",embed=bf16".repeat(EXCEPTIONS + 1)), "at most 256"),
        ] {
            let error = text.parse::<WeightFormats>().expect_err(text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
        for (text, needle) in [
            ("int8,layer.*=bf16", "layer.*"),
            ("int8,norm=bf16", "norm"),
            ("int8,embed=int4", "embed=int4"),
            ("int8,*a*b*c*d*e*f*g*h*i*=bf16", "8 stars"),
        ] {
            let formats: WeightFormats = text.parse().expect("a text of the right form");
            let error = formats.check(&table()).expect_err(text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
        assert!("f32".parse::<WeightFormats>().expect("legal").is_f32());
    }
}
