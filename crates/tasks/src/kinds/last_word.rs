//! The last word of a passage: LAMBADA (Paperno et al. 2016).

use crate::ask::SequenceScore;
use crate::error::{TaskError, excerpt};
use crate::kind::{Form, Item, Judged, Key, Kind, REQUIRED, after};
use crate::report::{Measure, Score, Shape};
use crate::settings::TaskSettings;

pub(crate) const KIND: Kind = Kind {
    name: "last_word",
    about: "The last word of a passage, which is what follows its last space: LAMBADA.",
    keys: &[Key {
        name: "text",
        without: REQUIRED,
        about: "template of the passage with its last word",
    }],
    measures: &[
        Measure {
            name: "acc",
            shape: Shape::Mean,
            about: "every token of the word is the most likely one",
        },
        Measure {
            name: "perplexity",
            shape: Shape::Perplexity,
            about: "a last word, however many tokens it has",
        },
    ],
    read,
    judge,
};

fn read(settings: &TaskSettings) -> Result<Form, TaskError> {
    let text = settings.template("text")?;
    Ok(Box::new(move |row| {
        let text = text.render(row)?;
        let Some((context, word)) =
            text.rsplit_once(' ').filter(|(context, _)| !context.is_empty())
        else {
            return Err(row.wrong("text", "a passage, a space and a last word", excerpt(&text)));
        };
        let passage = after(row, context.to_owned(), format!(" {word}"))?;
        Ok(Item { line: row.line, texts: vec![passage], choices: Vec::new(), answer: None })
    }))
}

fn judge(_: &Item, answers: &[SequenceScore]) -> Judged {
    let right = answers.iter().all(|answer| answer.greedy);
    let amount = answers.iter().map(|answer| answer.log_likelihood).sum();
    Judged {
        prediction: None,
        correct: Some(right),
        scores: vec![Score::of(right), Score { amount, weight: 1.0 }],
    }
}
