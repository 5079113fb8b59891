//! Studies: which runs are compared, and what their numbers say. Knows no tensor, no file, no
//! clock.
//!
//! A [`Study`] is the text of a study file: recipes, fields with the values they take, seeds. Its
//! [`Study::points`] are the runs, each a recipe with settings. [`key`] names a run by what decides
//! its bits, and a [`Sheet`] holds a line of results for each.

mod error;
mod file;
mod key;
mod points;
mod sheet;

pub use error::StudyError;
pub use file::{Goal, Objective, Study};
pub use key::key;
pub use points::{Setting, StudyPoint};
pub use sheet::Sheet;
