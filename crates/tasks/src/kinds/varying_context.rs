//! Several contexts, one continuation that fits one of them: WinoGrande (Sakaguchi et al. 2019).

use crate::ask::SequenceScore;
use crate::error::TaskError;
use crate::kind::{
    DELIMITER, Form, Item, Judged, Key, Kind, REQUIRED, after, delimiter, first_highest, label,
};
use crate::report::{Measure, Score, Shape};
use crate::settings::TaskSettings;

pub(crate) const KIND: Kind = Kind {
    name: "varying_context",
    about: "Several contexts and one continuation that fits one of them: WinoGrande.",
    keys: &[
        Key {
            name: "contexts",
            without: REQUIRED,
            about: "list of templates of what comes before",
        },
        Key {
            name: "continuation",
            without: REQUIRED,
            about: "template of what is scored after each of them",
        },
        Key {
            name: "answer",
            without: REQUIRED,
            about: "`\"{field}\"` of the right context's place from 0, or of its text",
        },
        DELIMITER,
    ],
    measures: &[Measure {
        name: "acc",
        shape: Shape::Mean,
        about: "the continuation has its highest log-likelihood after the right context",
    }],
    read,
    judge,
};

fn read(settings: &TaskSettings) -> Result<Form, TaskError> {
    let Some(contexts) = settings.templates("contexts")? else {
        return Err(settings.wrong("contexts", "a list of at least two templates", "a string"));
    };
    let continuation = settings.template("continuation")?;
    let answer = settings.field("answer")?;
    let delimiter = delimiter(settings)?;
    Ok(Box::new(move |row| {
        let contexts = contexts
            .iter()
            .map(|context| context.render(row))
            .collect::<Result<Vec<_>, TaskError>>()?;
        if contexts.iter().any(String::is_empty) {
            return Err(row.wrong("contexts", "texts", "an empty one"));
        }
        let place = label(&answer, row, &contexts)?;
        let continuation = continuation.render(row)?;
        if continuation.is_empty() {
            return Err(row.wrong("continuation", "a text", "an empty one"));
        }
        let texts = contexts
            .into_iter()
            .map(|context| after(row, context, format!("{delimiter}{continuation}")));
        Ok(Item {
            line: row.line,
            texts: texts.collect::<Result<Vec<_>, TaskError>>()?,
            choices: Vec::new(),
            answer: Some(place),
        })
    }))
}

fn judge(item: &Item, answers: &[SequenceScore]) -> Judged {
    let prediction = first_highest(answers.iter().map(|answer| answer.log_likelihood));
    let right = Some(prediction) == item.answer;
    Judged { prediction: Some(prediction), correct: Some(right), scores: vec![Score::of(right)] }
}
