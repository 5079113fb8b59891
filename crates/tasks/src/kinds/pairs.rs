//! Two sentences that differ in little, one of them acceptable: BLiMP (Warstadt et al. 2020).

use crate::ask::SequenceScore;
use crate::error::TaskError;
use crate::kind::{
    DELIMITER, Form, Item, Judged, Key, Kind, REQUIRED, after, delimiter, first_highest,
};
use crate::report::{Measure, Score, Shape};
use crate::settings::TaskSettings;

pub(crate) const KIND: Kind = Kind {
    name: "pairs",
    about: "Two sentences that differ in little, one of them acceptable, each scored from its \
            first token: BLiMP.",
    keys: &[
        Key { name: "good", without: REQUIRED, about: "template of the acceptable sentence" },
        Key { name: "bad", without: REQUIRED, about: "template of the other one" },
        Key {
            name: DELIMITER.name,
            without: DELIMITER.without,
            about: "text before each sentence",
        },
    ],
    measures: &[Measure {
        name: "acc",
        shape: Shape::Mean,
        about: "the bad sentence has no higher log-likelihood than the good one",
    }],
    read,
    judge,
};

fn read(settings: &TaskSettings) -> Result<Form, TaskError> {
    let sentences = [settings.template("good")?, settings.template("bad")?];
    let delimiter = delimiter(settings)?;
    Ok(Box::new(move |row| {
        let [good, bad] = [sentences[0].render(row)?, sentences[1].render(row)?];
        let good = after(row, String::new(), format!("{delimiter}{good}"))?;
        let bad = after(row, String::new(), format!("{delimiter}{bad}"))?;
        Ok(Item { line: row.line, texts: vec![good, bad], choices: Vec::new(), answer: Some(0) })
    }))
}

fn judge(_: &Item, answers: &[SequenceScore]) -> Judged {
    let prediction = first_highest(answers.iter().map(|answer| answer.log_likelihood));
    let right = prediction == 0;
    Judged { prediction: Some(prediction), correct: Some(right), scores: vec![Score::of(right)] }
}
