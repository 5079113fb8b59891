//! `lathe bench`: what measures speed stands here, apart from the verbs that do work.

mod answer_times;
pub(crate) mod arguments;
mod engine;
mod experts;
mod growth;
mod kernels;
mod load_client;
mod machine_rates;
mod metrics;
mod mlp;
mod row_work;
mod serve;
mod subject;
mod tally;
mod train;

use std::process::ExitCode;

use anyhow::Result;

use arguments::BenchCommand;
pub(crate) use subject::peak_memory;

/// Runs the bench that the command line names.
pub(crate) fn run(command: &BenchCommand) -> Result<ExitCode> {
    match command {
        BenchCommand::Train(options) => train::run(options),
        BenchCommand::Decode(options) => engine::decode(options),
        BenchCommand::Prefill(options) => engine::prefill(options),
        BenchCommand::Serve(options) => serve::run(options),
        BenchCommand::Kernels(options) => kernels::run(options),
        BenchCommand::Experts(options) => experts::run(options),
        BenchCommand::Mlp(options) => mlp::run(options),
        BenchCommand::Metrics(options) => metrics::run(options),
        BenchCommand::Growth(options) => growth::run(options),
    }
}
