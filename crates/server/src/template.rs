//! Chat templates: Jinja as published models use it, bounded in instructions and output.

use crate::calendar;
use crate::json::Json;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::Serialize;

/// A template, compiled once, with the bounds of every rendering.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    most_bytes: usize,
}

/// What a template sees.
#[derive(Serialize)]
pub(crate) struct TemplateInput<'s> {
    pub(crate) messages: &'s [Json],
    pub(crate) add_generation_prompt: bool,
    pub(crate) bos_token: &'s str,
    pub(crate) eos_token: &'s str,
    pub(crate) tools: Option<()>,
    pub(crate) documents: Option<()>,
}

impl ChatTemplate {
    /// # Errors
    /// What the template's author wrote wrong.
    pub(crate) fn new(source: &str, fuel: u64, most_bytes: usize) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(64);
        environment.set_keep_trailing_newline(true);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            calendar::format(calendar::now(), &format)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        });
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", source.to_owned()).map_err(|e| format!("{e:#}"))?;
        Ok(Self { environment, most_bytes })
    }

    /// # Errors
    /// What the template refused, or the bound that it broke.
    pub(crate) fn render(
        &self,
        scene: &TemplateInput<'_>,
        more: Option<&Json>,
    ) -> Result<String, String> {
        let template = self.environment.get_template("chat").map_err(|e| e.to_string())?;
        let mut out = Bounded { bytes: Vec::new(), most: self.most_bytes, full: false };
        let more = more.map_or_else(Value::default, Value::from_serialize);
        let context = minijinja::context! { ..Value::from_serialize(scene), ..more };
        if let Err(error) = template.render_captured_to(context, &mut out) {
            return Err(match (out.full, error.kind()) {
                (true, _) => format!("it produced more than {} bytes", self.most_bytes),
                (_, ErrorKind::OutOfFuel) => "it ran more instructions than allowed".to_owned(),
                _ => error.to_string(),
            });
        }
        String::from_utf8(out.bytes).map_err(|e| e.to_string())
    }
}

struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            self.full = true;
            return Err(std::io::Error::other("full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// JSON without escapes for HTML, as published templates expect; spaces after commas and colons.
fn tojson(_: &State<'_, '_>, value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let mut out = Vec::new();
    match indent {
        Some(width) if width <= 16 => {
            let spaces = " ".repeat(width);
            let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, style))
                .map_err(broken_json)?;
        }
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is at most 16"));
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced))
            .map_err(broken_json)?,
    }
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

fn broken_json(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, error.to_string())
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
    ) -> std::io::Result<()> {
        to.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\
        {{ m['content'] | trim }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn render(source: &str) -> Result<String, String> {
        let messages = [Json::parse(br#"{"role":"user","content":" Hi <b> "}"#).unwrap()];
        let scene = TemplateInput {
            messages: &messages,
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "</s>",
            tools: None,
            documents: None,
        };
        ChatTemplate::new(source, 300_000, 16 << 20)?
            .render(&scene, Some(&Json::parse(br#"{"mood":"calm"}"#).unwrap()))
    }

    #[test]
    fn templates_of_published_models() {
        assert_eq!(
            render(CHATML).unwrap(),
            "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
        );
        let cases = [
            (
                "{{ bos_token }}{{ messages[0].content.strip().upper() }}{{ eos_token }}",
                "<s>HI <B></s>",
            ),
            ("{% if messages[0]['content'].startswith(' Hi') %}yes{% endif %}", "yes"),
            ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \" Hi <b> \"}]"),
            ("{{ mood }}{{ tools is none }}", "calmTrue"),
            (
                "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = 2 %}{% endfor %}\
                 {{ ns.a }}",
                "2",
            ),
            ("{% for m in messages if m.role == 'system' %}x{% else %}none{% endfor %}", "none"),
            ("{{ strftime_now('%Y') | length }}", "4"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}", "[a]"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn hostile_templates_are_refused_quickly() {
        let cases = [
            ("{{ raise_exception('only user and assistant') }}", "only user and assistant"),
            ("{% for i in range(1000000000) %}x{% endfor %}", "range"),
            (
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                "instructions",
            ),
            ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
            (
                "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}\
                 {{ f() }}",
                "",
            ),
            ("{{ 'x' * 99999999999 }}", "too large"),
            ("{% include 'chat' %}", ""),
            ("{% extends 'chat' %}", ""),
            ("{% include '/etc/passwd' %}", "not found"),
            ("{{ messages[0].role.missing.deeper }}", "undefined"),
            ("{% for %}", "syntax"),
            ("{{ nothing() }}", "unknown"),
        ];
        for (source, part) in cases {
            let begun = Instant::now();
            let error = render(source).unwrap_err();
            assert!(error.contains(part), "{source}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(2), "{source}: {:?}", begun.elapsed());
        }
    }
}
