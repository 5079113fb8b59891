//! Chat templates: Jinja as published models use it, bounded in instructions and output.

use crate::json::Json;
use crate::{calendar, template_filters, template_methods, template_source, template_values};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde::{Deserialize, Serialize};

/// Characters around what is to be learned in the renderings of [`ChatTemplate::marking`]; no text
/// has them.
pub(crate) const LEARNED: [char; 2] = ['\u{FDEE}', '\u{FDEF}'];

/// A template, compiled once, with the bounds of every rendering. What these do not bound (how deep
/// values nest, how much a filter allocates) ends the process that renders: see
/// [`crate::template_worker`].
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    most_bytes: usize,
}

/// What a template sees.
#[derive(Serialize, Deserialize)]
pub(crate) struct TemplateInput {
    pub(crate) messages: Vec<Json>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) bos_token: String,
    pub(crate) eos_token: String,
    pub(crate) tools: Option<()>,
    pub(crate) documents: Option<()>,
}

impl ChatTemplate {
    /// # Errors
    /// What the template's author wrote wrong, or what cannot be rendered as transformers does.
    pub(crate) fn new(source: &str, fuel: u64, most_bytes: usize) -> Result<Self, String> {
        Self::with_clock(template_source::prepare(source)?, fuel, most_bytes, calendar::now)
    }

    /// The same with [`LEARNED`] around what `{% generation %}` holds.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub(crate) fn marking(source: &str, fuel: u64, most_bytes: usize) -> Result<Self, String> {
        let source = template_source::prepare_marking(source)?;
        Self::with_clock(source, fuel, most_bytes, calendar::now)
    }

    /// A template that is prepared, where `now` tells the time.
    fn with_clock(
        source: String,
        fuel: u64,
        most_bytes: usize,
        now: fn() -> u64,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(64);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(template_methods::call);
        environment.set_formatter(print);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| -> Result<String, Error> {
            calendar::format(now(), &format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        });
        template_filters::install(&mut environment);
        environment.add_filter(template_source::MARK_ANSWERS, |text: String| {
            let [begin, end] = LEARNED;
            format!("{begin}{text}{end}")
        });
        environment.add_template_owned("chat", source).map_err(|e| format!("{e:#}"))?;
        Ok(Self { environment, most_bytes })
    }

    /// # Errors
    /// What the template refused, or the bound that it broke.
    pub(crate) fn render(
        &self,
        scene: &TemplateInput,
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

/// Prints a value as Python does.
fn print(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if !template_values::differs(value) {
        return minijinja::escape_formatter(out, state, value);
    }
    let text = template_values::text(value).map_err(template_methods::wrong)?;
    Ok(out.write_str(&text)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\
        {{ m['content'] | trim }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn scene() -> TemplateInput {
        let messages = [Json::parse(br#"{"role":"user","content":" Hi <b> "}"#).unwrap()];
        TemplateInput {
            messages: messages.to_vec(),
            add_generation_prompt: true,
            bos_token: "<s>".to_owned(),
            eos_token: "</s>".to_owned(),
            tools: None,
            documents: None,
        }
    }

    fn render(source: &str) -> Result<String, String> {
        ChatTemplate::new(source, 300_000, 16 << 20)?
            .render(&scene(), Some(&Json::parse(br#"{"mood":"calm"}"#).unwrap()))
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

    /// Marked or not, blanks go as transformers lets them go.
    #[test]
    fn what_the_assistant_wrote_is_marked() {
        let source = "{% for m in messages %}[\n  {%- generation -%}\n  {% set x = 1 %}\
                      {{ m.content }}\n  \
                      {%- endgeneration -%}  \n]{% endfor %}";
        assert_eq!(render(source).unwrap(), "[ Hi <b> ]");
        let scene = scene();
        let marked = ChatTemplate::marking(source, 300_000, 16 << 20).unwrap();
        assert_eq!(marked.render(&scene, None).unwrap(), "[\u{FDEE} Hi <b> \u{FDEF}]");
        assert!(template_source::marks_answers(source));
        assert!(!template_source::marks_answers("{% raw %}{% generation %}{% endraw %}"));
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

    const TABLE: &str = include_str!("../tests/data/templates.json");

    /// Templates that are refused, with the construct that is named.
    const REFUSED: [(&str, &str); 17] = [
        ("{{ 2 ** -1 }}", "operator `**`"),
        ("{{ n.real }}", "part `real`"),
        ("{{ '%s-%d' % ('a', 3) }}", "operator `%`"),
        ("{{ '%.2f' % 1.005 }}", "operator `%`"),
        ("{{ '%05d|%-4s|' % (42, 'x') }}", "operator `%`"),
        ("{{ word.encode('utf-8') }}", "method `encode`"),
        ("{{ word | truncate(7) }}", "filter `truncate`"),
        ("{{ word | truncate(7, true) }}", "filter `truncate`"),
        ("{{ word | truncate(8, false, '.') }}", "filter `truncate`"),
        ("{{ lines | wordwrap(5) }}", "filter `wordwrap`"),
        ("{{ '<b>x</b> y' | striptags }}", "filter `striptags`"),
        ("{{ n | filesizeformat }}", "filter `filesizeformat`"),
        ("{{ big | filesizeformat }}", "filter `filesizeformat`"),
        ("{{ 1000 | filesizeformat(true) }}", "filter `filesizeformat`"),
        ("{{ map | pprint }}", "filter `pprint`"),
        ("{{ map | attr('a') }}", "filter `attr`"),
        ("{{ {'id': 'a', 'n': none} | xmlattr }}", "filter `xmlattr`"),
    ];

    /// Templates that come out otherwise: a list or a very small or large fraction behind `~` is
    /// written by the engine, and what a template writes as a tuple is a list.
    const OTHERWISE: [&str; 7] = [
        "{{ '[' ~ tiny ~ ']' }}",
        "{{ '[' ~ huge ~ ']' }}",
        "{{ '[' ~ mixed ~ ']' }}",
        "{{ '[' ~ map ~ ']' }}",
        "{{ () }}",
        "{{ (1,) }}",
        "{{ (1, 'a') }}",
    ];

    /// Renders as the table was made: 2024-07-26 09:05:03.
    fn of_table(table: &Json, source: &str) -> Result<String, String> {
        let Some(Json::List(messages)) = table.get("messages") else { panic!("no messages") };
        let scene = TemplateInput {
            messages: messages.clone(),
            add_generation_prompt: true,
            bos_token: "<s>".to_owned(),
            eos_token: "</s>".to_owned(),
            tools: None,
            documents: None,
        };
        let source = template_source::prepare(source)?;
        ChatTemplate::with_clock(source, 300_000, 16 << 20, || 1_721_984_703)?
            .render(&scene, table.get("variables"))
    }

    #[test]
    fn templates_render_as_transformers_does() {
        let table = Json::parse(TABLE.as_bytes()).unwrap();
        let Some(Json::List(cases)) = table.get("cases") else { panic!("no cases") };
        let (mut same, mut wrong, mut otherwise) = (0, Vec::new(), Vec::new());
        for case in cases {
            let Json::List(case) = case else { panic!("no case: {case:?}") };
            let source = case[0].as_text().unwrap();
            let found = of_table(&table, source);
            match (&found, case[1].as_text()) {
                (Ok(found), Some(expected)) if found == expected => same += 1,
                (Err(_), None) => same += 1,
                (Err(error), _) if REFUSED.iter().any(|(refused, _)| *refused == source) => {
                    let (_, name) = REFUSED.iter().find(|(refused, _)| *refused == source).unwrap();
                    assert!(error.contains(name), "{source}: {error}");
                    otherwise.push(source);
                }
                _ if OTHERWISE.contains(&source) => otherwise.push(source),
                (found, expected) => wrong.push(format!("{source}: {found:?}, not {expected:?}")),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(same, 561);
        assert_eq!(otherwise.len(), REFUSED.len() + OTHERWISE.len(), "{otherwise:?}");
    }
}
