//! Run logs, TensorBoard events, terminal tables and colours, and self-contained HTML pages with
//! plots and per-token depth heat maps. Knows no tensor.

pub mod ansi;
mod escape;
mod grid;
pub mod heat;
pub mod html;
pub mod jsonl;
pub mod plot;
mod scale;
pub mod sparkline;
pub mod table;
pub mod tensorboard;

pub use ansi::{DepthColors, sanitize, steers};
pub use grid::Grid;
pub use heat::{HeatText, HeatToken};
pub use html::Page;
pub use jsonl::{Contents, Log, LogError, Record, TornLine};
pub use plot::{BarSeries, Bars, Chart, Series};
pub use sparkline::sparkline;
pub use table::{Best, Table, human_bytes, human_count, human_duration};
pub use tensorboard::{EventError, EventWriter};
