//! Studies: which runs are compared, and what their numbers say. Knows no tensor, no file, no
//! clock.
//!
//! A [`Study`] is the text of a study file: recipes, fields with the values they take, seeds. Its
//! [`Study::points`] are the runs, each a recipe with settings. [`key`] names a run by what decides
//! its bits, and a [`Sheet`] holds a line of results for each. A [`Comparison`] sets families of
//! models beside each other on equal terms ([`nearest_size`]); [`paired`] and [`answer`] say what
//! their losses force one to say, also of what others [`Published`]. A [`Frontier`] is a list of
//! ways to make models smaller.

mod answer;
mod comparison;
mod distribution;
mod error;
mod file;
mod fit;
mod frontier;
mod key;
mod law;
mod paired;
mod points;
mod published;
mod sheet;

pub use answer::{Contestant, Duel, answer, duels, p_text};
pub use comparison::{Comparison, Equal, Variant, equal};
pub use distribution::{student_p, student_quantile};
pub use error::StudyError;
pub use file::{Goal, Objective, Study};
pub use fit::{Fitted, nearest_size};
pub use frontier::{Frontier, FrontierPoint, Method, undominated};
pub use key::key;
pub use law::{CheckedLaw, FEWEST_BUDGETS, PowerLaw, power_law};
pub use paired::{FEWEST_SEEDS, LARGEST_P, Paired, SMALLEST_NATS, mean_and_deviation, paired};
pub use points::{Setting, StudyPoint};
pub use published::{Published, PublishedPair, Verdict, verdicts};
pub use sheet::Sheet;
