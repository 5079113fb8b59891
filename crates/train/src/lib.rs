//! Windows to steps to checkpoints: the recipe, the schedule, the optimizer, the loop. Knows no command line and no
//! terminal: whoever runs it sees every step's report and decides when to stop.

mod config;
mod error;
mod optimizer;
mod resume;
mod run;
mod schedule;
mod step;
mod stored;
mod validate;

pub use config::{
    CheckpointConfig, DataConfig, LogConfig, NonFinite, OptimizerConfig, Recipe, ScheduleConfig, TrainConfig,
};
pub use error::TrainError;
pub use optimizer::Optimizer;
pub use resume::Resumed;
pub use run::{Event, Resume, Run, Stop};
pub use schedule::learning_rate;
pub use step::{StepReport, Trainer, pack};
pub use stored::{Stored, load, load_model};
pub use validate::{RuleScore, SourceScore, Validation, score_rule, spread, validate};
