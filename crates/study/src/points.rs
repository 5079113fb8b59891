//! The runs of a study: every combination of recipes, values and seeds, in one order.

use serde_json::Value;

use crate::Study;
use crate::file::SEED;

/// A field of the recipe and its value.
pub type Setting = (String, Value);

/// One run of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyPoint {
    /// Its number, from 1, in the order of the study.
    pub number: usize,
    /// The recipe and what is special about the run.
    pub name: String,
    /// The same without the seed: points of one group differ in it alone.
    pub group: String,
    /// The recipe file or preset.
    pub recipe: String,
    /// What is set in the recipe, the seed included.
    pub settings: Vec<Setting>,
    /// The values of the fields that vary, as text, in the order of [`Study::varied`].
    pub values: Vec<String>,
    /// The seed, where the study gives one.
    pub seed: Option<u64>,
}

impl Study {
    /// The runs: recipes outermost, then fields in their order, seeds innermost.
    pub fn points(&self) -> Vec<StudyPoint> {
        let mut found = Vec::new();
        for recipe in &self.recipes {
            for chosen in self.combinations() {
                let seeds: Vec<Option<u64>> = match self.seeds.is_empty() {
                    true => vec![None],
                    false => self.seeds.iter().copied().map(Some).collect(),
                };
                for seed in seeds {
                    found.push(self.point(found.len() + 1, recipe, &chosen, seed));
                }
            }
        }
        found
    }

    /// Every combination of the values of fields that vary, the last field fastest.
    fn combinations(&self) -> Vec<Vec<Setting>> {
        let mut all = vec![Vec::new()];
        for parameter in self.parameters.iter().filter(|parameter| parameter.values.len() > 1) {
            let mut longer = Vec::new();
            for begun in &all {
                for value in &parameter.values {
                    let mut chosen: Vec<Setting> = begun.clone();
                    chosen.push((parameter.field.clone(), value.clone()));
                    longer.push(chosen);
                }
            }
            all = longer;
        }
        all
    }

    fn point(
        &self,
        number: usize,
        recipe: &str,
        chosen: &[Setting],
        seed: Option<u64>,
    ) -> StudyPoint {
        let values: Vec<String> = chosen.iter().map(|(_, value)| shown(value)).collect();
        let mut group = stem(recipe).to_owned();
        for ((field, _), value) in chosen.iter().zip(&values) {
            group += &format!(" {field}={value}");
        }
        let mut name = group.clone();
        if let Some(seed) = seed.filter(|_| self.seeds.len() > 1) {
            name += &format!(" seed={seed}");
        }
        let seeded = seed.map(|seed| (SEED.to_owned(), seed.into()));
        let settings = self.fixed().chain(chosen.iter().cloned()).chain(seeded).collect();
        StudyPoint { number, name, group, recipe: recipe.to_owned(), settings, values, seed }
    }
}

/// The name of a recipe file without folders and ending, or the preset itself.
fn stem(recipe: &str) -> &str {
    let Some(file) = recipe.strip_suffix(".toml") else { return recipe };
    file.rsplit('/').next().unwrap_or(file)
}

/// A value as a person writes it: words without quotes, everything else as JSON.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(study: &Study) -> Vec<String> {
        study.points().into_iter().map(|point| point.name).collect()
    }

    #[test]
    fn the_last_field_and_the_seeds_turn_fastest() {
        let mut study = Study::of_recipe("it", "some/where/a.toml");
        assert_eq!(names(&study), ["a"]);
        study.recipes.push("cpu-1m-mor3".into());
        study.vary("train.batch=4,8").expect("legal");
        study.vary("train.steps=7").expect("legal");
        study.vary("train.seed=1,2").expect("legal");
        assert_eq!(
            names(&study),
            [
                "a train.batch=4 seed=1",
                "a train.batch=4 seed=2",
                "a train.batch=8 seed=1",
                "a train.batch=8 seed=2",
                "cpu-1m-mor3 train.batch=4 seed=1",
                "cpu-1m-mor3 train.batch=4 seed=2",
                "cpu-1m-mor3 train.batch=8 seed=1",
                "cpu-1m-mor3 train.batch=8 seed=2",
            ]
        );
        let third = &study.points()[2];
        let setting = |field: &str, value| (field.to_owned(), value);
        assert_eq!(
            third.settings,
            [
                setting("train.steps", json!(7)),
                setting("train.batch", json!(8)),
                setting("train.seed", json!(1))
            ]
        );
        assert_eq!((third.number, third.values.as_slice()), (3, &["8".to_owned()][..]));
    }

    #[test]
    fn every_combination_is_there_once() {
        let mut study = Study::of_recipe("it", "a.toml");
        for field in ["a=1,2", "b=x,y,z", "c=true,false"] {
            study.vary(field).expect("legal");
        }
        let mut all = names(&study);
        assert_eq!(all.len(), 12);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 12);
    }
}
