//! Windows to steps to checkpoints: the recipe, the schedule, the optimizer, the loop. Knows no
//! command line and no terminal: whoever runs it sees every step's report and decides when to stop.

mod agreement;
mod changes;
mod config;
mod error;
mod experts;
mod flat;
mod forecast;
mod freeze;
mod given_config;
mod identity;
mod journal;
mod opening;
mod optimizer;
mod resume;
mod rounded;
mod run;
mod schedule;
mod snapshot;
mod start;
mod step;
mod step_report;
mod stored;
mod sums;
mod tell;
mod together;
mod validate;

pub use changes::Change;
pub use config::{
    CheckpointConfig, DataConfig, DistillConfig, LogConfig, NonFinite, OptimizerConfig, Recipe,
    ScheduleConfig, StartConfig, TrainConfig, usual_micro_batch,
};
pub use error::TrainError;
pub use experts::{ExpertSharing, ExpertTraffic, Moved};
pub use forecast::{Forecast, Memory, Timing, Work};
pub use given_config::{model_config, whole_config};
pub use identity::identity;
pub use opening::{
    StoredText, config_of, load_for_use, load_learned, load_model, load_text, run_folder,
};
pub use optimizer::Optimizer;
pub use resume::Resumed;
pub use rounded::{Rounded, stored_bytes, tensors};
pub use run::{Among, Event, Opened, Resume, Run, Stop, open_data};
pub use schedule::learning_rate;
pub use start::older;
pub use step::{Trainer, pack};
pub use step_report::StepReport;
pub use stored::{Made, Stored, check_free, load, write_model};
pub use validate::{
    RuleScore, SourceScore, Validation, WindowChoice, in_chunks, score_rule, score_watched,
    validate,
};
