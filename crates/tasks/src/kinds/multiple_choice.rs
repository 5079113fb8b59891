//! One context, several continuations, one of them right: PIQA, ARC, OpenBookQA, HellaSwag, BoolQ,
//! MMLU.

use crate::ask::SequenceScore;
use crate::error::TaskError;
use crate::items::Row;
use crate::kind::{
    DELIMITER, Form, Item, Judged, Key, Kind, REQUIRED, after, delimiter, first_highest, label,
};
use crate::report::{Measure, Score, Shape};
use crate::settings::TaskSettings;
use crate::shots;
use crate::template::Template;

pub(crate) const KIND: Kind = Kind {
    name: "multiple_choice",
    about: "One context, several continuations, one of them right: PIQA, ARC, OpenBookQA, \
            HellaSwag, BoolQ, MMLU.",
    keys: &[
        Key {
            name: "context",
            without: REQUIRED,
            about: "template of what comes before the choices; may be \"\"",
        },
        Key {
            name: "choices",
            without: REQUIRED,
            about: "`\"{field}\"` of a list of texts, or a list of templates",
        },
        Key {
            name: "answer",
            without: REQUIRED,
            about: "`\"{field}\"` of the right choice's place from 0, or of its text",
        },
        DELIMITER,
        shots::COUNT,
        shots::FILE,
        shots::BETWEEN,
    ],
    measures: &[
        Measure {
            name: "acc",
            shape: Shape::Mean,
            about: "the right choice has the highest log-likelihood",
        },
        Measure {
            name: "acc_norm",
            shape: Shape::Mean,
            about: "the same, a character (code point) of the choice",
        },
        Measure {
            name: "acc_bytes",
            shape: Shape::Mean,
            about: "the same, a byte of the choice in UTF-8",
        },
    ],
    read,
    judge,
};

/// Where the choices of a row are.
enum Choices {
    Field(Template),
    Each(Vec<Template>),
}

impl Choices {
    fn of(&self, row: &Row) -> Result<Vec<String>, TaskError> {
        let choices = match self {
            Self::Each(templates) => {
                templates.iter().map(|t| t.render(row)).collect::<Result<Vec<_>, TaskError>>()?
            }
            Self::Field(template) => {
                let (field, origin) =
                    template.only_field().expect("`TaskSettings::field` admits nothing else");
                row.list(field, origin)?
            }
        };
        if choices.len() < 2 {
            return Err(row.wrong("choices", "at least two", choices.len().to_string()));
        }
        match choices.iter().position(String::is_empty) {
            Some(at) => Err(row.wrong("choices", "texts", format!("an empty one at place {at}"))),
            None => Ok(choices),
        }
    }
}

fn read(settings: &TaskSettings) -> Result<Form, TaskError> {
    let context = settings.template("context")?;
    let choices = match settings.templates("choices")? {
        Some(templates) => Choices::Each(templates),
        None => Choices::Field(settings.field("choices")?),
    };
    let answer = settings.field("answer")?;
    let delimiter = delimiter(settings)?;
    let before = shots::before(settings, |row| {
        let texts = choices.of(row)?;
        Ok(format!("{}{delimiter}{}", context.render(row)?, texts[label(&answer, row, &texts)?]))
    })?;
    Ok(Box::new(move |row| {
        let texts = choices.of(row)?;
        let context = format!("{before}{}", context.render(row)?);
        let scored =
            texts.iter().map(|text| after(row, context.clone(), format!("{delimiter}{text}")));
        Ok(Item {
            line: row.line,
            texts: scored.collect::<Result<Vec<_>, TaskError>>()?,
            answer: Some(label(&answer, row, &texts)?),
            choices: texts,
        })
    }))
}

/// The choice of the highest `log_likelihood / length`.
fn likeliest_per(item: &Item, answers: &[SequenceScore], length: fn(&str) -> usize) -> usize {
    let pairs = answers.iter().zip(&item.choices);
    first_highest(pairs.map(|(answer, choice)| answer.log_likelihood / length(choice) as f64))
}

fn judge(item: &Item, answers: &[SequenceScore]) -> Judged {
    let prediction = first_highest(answers.iter().map(|answer| answer.log_likelihood));
    let by_char = likeliest_per(item, answers, |choice| choice.chars().count());
    let by_byte = likeliest_per(item, answers, str::len);
    let right = [prediction, by_char, by_byte].map(|at| Some(at) == item.answer);
    Judged {
        prediction: Some(prediction),
        correct: Some(right[0]),
        scores: right.into_iter().map(Score::of).collect(),
    }
}
