//! Chat templates by name, for models that carry none.

/// A chat template that everybody knows by its name.
pub struct NamedTemplate {
    /// The name by which it is asked for.
    pub name: &'static str,
    /// Jinja, which begins with the first message.
    source: &'static str,
    /// Tokens that it writes; in a vocabulary without them they are text like any other.
    pub tokens: &'static [&'static str],
    /// Of these, the one with which a message ends.
    pub end: Option<&'static str>,
}

/// All templates that have a name.
pub const NAMED_TEMPLATES: [NamedTemplate; 2] = [
    NamedTemplate {
        name: "chatml",
        source: "{% for message in messages %}<|im_start|>{{ message.role }}\n\
                 {{ message.content }}<|im_end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        tokens: &["<|im_start|>", "<|im_end|>"],
        end: Some("<|im_end|>"),
    },
    NamedTemplate {
        name: "plain",
        source: "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
                 {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        tokens: &[],
        end: None,
    },
];

impl NamedTemplate {
    /// The template of this name.
    pub fn find(name: &str) -> Option<&'static NamedTemplate> {
        NAMED_TEMPLATES.iter().find(|template| template.name == name)
    }

    /// Jinja for a model that was trained with a begin token before every text, or for another.
    pub fn jinja(&self, with_bos: bool) -> String {
        let begin = if with_bos { "{{ bos_token }}" } else { "" };
        format!("{begin}{}", self.source)
    }
}
