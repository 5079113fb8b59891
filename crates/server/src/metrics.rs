//! What the server counts, and its text for Prometheus together with the engine's gauges.

use crate::backend::ModelInfo;
use scheduler::Gauges;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Why work was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    Queue,
    Draining,
    Connections,
}

const REASONS: [&str; 3] = ["queue", "draining", "connections"];

/// A counter that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends in microseconds; one more bucket holds the rest.
const ENDS_US: [u64; 16] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    120_000_000,
];

/// Times, counted by size.
#[derive(Default)]
pub(crate) struct Histogram {
    counts: [Counter; ENDS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = ENDS_US.iter().position(|&end| us <= end).unwrap_or(ENDS_US.len());
        self.counts[at].add(1);
        self.sum_us.add(us);
    }
}

/// All counters of the server.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    shed: [Counter; REASONS.len()],
    /// Sequences whose client went away.
    pub(crate) cancelled: Counter,
    pub(crate) panics: Counter,
    /// Log-probabilities that were no numbers.
    pub(crate) nans: Counter,
    pub(crate) slow_readers: Counter,
    /// Connections accepted, ended, and ended by a timeout.
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) timeouts: Counter,
    /// Tokens that finished sequences reported in `usage`.
    pub(crate) usage_prompt: Counter,
    pub(crate) usage_completion: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) whole: Histogram,
}

impl Metrics {
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn shed(&self, reason: Shed) {
        self.shed[reason as usize].add(1);
    }

    /// The text that `/metrics` answers.
    pub(crate) fn text(
        &self,
        gauges: &Gauges,
        info: &ModelInfo,
        connections: usize,
        grammars: grammar::GrammarTimes,
    ) -> String {
        let mut page = Page(String::new());
        self.own(&mut page);
        forms(&mut page, grammars);
        let help = "Connections that may be open, as the system's limit of descriptors allows.";
        page.single("connections_limit", "gauge", help, connections);
        engine(&mut page, gauges);
        page.head("build_info", "gauge", "What runs here; always 1.");
        let version = env!("CARGO_PKG_VERSION");
        page.line(
            "build_info",
            &[("version", version), ("model", &info.id), ("fingerprint", &info.fingerprint)],
            1,
        );
        page.0
    }

    fn own(&self, page: &mut Page) {
        page.head(
            "requests_total",
            "counter",
            "Requests that ended, by route and status; 499: the client went away.",
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((route, status), count) in requests {
            page.line(
                "requests_total",
                &[("route", route), ("status", &status.to_string())],
                count,
            );
        }
        page.head("shed_total", "counter", "Requests and connections turned away, by reason.");
        for (reason, count) in REASONS.iter().zip(&self.shed) {
            page.line("shed_total", &[("reason", reason)], count.get());
        }
        let counters = [
            (
                "cancelled_total",
                "Sequences cancelled because the client went away.",
                &self.cancelled,
            ),
            ("panics_total", "Requests that ended in a panic.", &self.panics),
            ("nan_total", "Answers refused because a log-probability was no number.", &self.nans),
            (
                "slow_readers_total",
                "Requests dropped because the client did not read.",
                &self.slow_readers,
            ),
            ("connections_total", "Connections accepted.", &self.opened),
            (
                "connection_timeouts_total",
                "Connections closed because nothing came.",
                &self.timeouts,
            ),
            (
                "usage_prompt_tokens_total",
                "Prompt tokens that answers reported.",
                &self.usage_prompt,
            ),
            (
                "usage_completion_tokens_total",
                "New tokens that answers reported.",
                &self.usage_completion,
            ),
        ];
        for (name, help, counter) in counters {
            page.single(name, "counter", help, counter.get());
        }
        let open = self.opened.get().saturating_sub(self.closed.get());
        page.single("connections", "gauge", "Connections open.", open);
        let histograms = [
            (
                "time_to_first_token_seconds",
                "From the request to its first token.",
                &self.first_token,
            ),
            (
                "inter_token_seconds",
                "From a token to the next of its sequence.",
                &self.between_tokens,
            ),
            (
                "queue_seconds",
                "From submission to the tick of the first row, or to the end of who never ran.",
                &self.queued,
            ),
            (
                "prefill_seconds",
                "From the tick of the first row to the end of the tick that completed the prompt.",
                &self.prefill,
            ),
            ("request_seconds", "From the request to the end of its sequence.", &self.whole),
        ];
        for (name, help, histogram) in histograms {
            page.histogram(name, help, histogram);
        }
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP lathe_{name} {help}\n# TYPE lathe_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let escape =
            |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let inner: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escape(text))).collect();
        let labels =
            if inner.is_empty() { String::new() } else { format!("{{{}}}", inner.join(",")) };
        let _ = writeln!(self.0, "lathe_{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (end, count) in ENDS_US.iter().zip(&histogram.counts) {
            below += count.get();
            self.line(&bucket, &[("le", &(*end as f64 / 1e6).to_string())], below);
        }
        below += histogram.counts[ENDS_US.len()].get();
        self.line(&bucket, &[("le", "+Inf")], below);
        self.line(&format!("{name}_sum"), &[], histogram.sum_us.get() as f64 / 1e6);
        self.line(&format!("{name}_count"), &[], below);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// What it takes that texts have a form.
fn forms(page: &mut Page, spent: grammar::GrammarTimes) {
    let help = "Schemas, patterns and lists of choices that were made ready.";
    page.single("grammars_total", "counter", help, spent.grammars);
    let help = "Time to make them ready, summed.";
    page.single("grammar_compile_seconds_total", "counter", help, seconds(spent.compile_us));
    let help = "Tokens drawn under them.";
    page.single("grammar_tokens_total", "counter", help, spent.tokens);
    let help = "Time to find which tokens may come next, summed over those tokens.";
    page.single("grammar_token_seconds_total", "counter", help, seconds(spent.token_us));
}

/// What holds keys and values, and how much of it is free.
fn pages(page: &mut Page, gauges: &Gauges) {
    page.single("kv_pages", "gauge", "Pages for keys and values.", gauges.pages);
    page.head(
        "kv_pages_used",
        "gauge",
        "Pages in use, cached ones too; tier 0 is outside the recursions, then one for each.",
    );
    for (tier, pages) in gauges.pages_used.iter().enumerate() {
        page.line("kv_pages_used", &[("tier", &tier.to_string())], pages);
    }
    page.single(
        "kv_pages_cached",
        "gauge",
        "Pages held by the prefix cache alone.",
        gauges.pages_cached,
    );
    page.single(
        "kv_pages_held_most",
        "gauge",
        "Most pages that sequences held at a time since the start.",
        gauges.pages_held_most,
    );
    page.single(
        "kv_usage",
        "gauge",
        "Share of the pages that sequences hold, 0 to 1; those of the prefix cache alone are free.",
        gauges.kv_usage(),
    );
    page.head(
        "cache_config_info",
        "gauge",
        "Tokens of a block, and blocks of full depth that the pages hold; always 1.",
    );
    let (size, blocks) = (scheduler::PAGE.to_string(), gauges.blocks.to_string());
    page.line("cache_config_info", &[("block_size", &size), ("num_gpu_blocks", &blocks)], 1);
    page.single("kv_page_bytes", "gauge", "Bytes of a page.", gauges.page_bytes);
}

/// Loads of experts, of models that have some.
fn experts(page: &mut Page, layers: &[(usize, Vec<u64>)]) {
    if layers.is_empty() {
        return;
    }
    let help = "Rows that went to each expert that computes, by stored layer, those computed \
                again too; only of models with experts.";
    page.head("expert_rows_total", "counter", help);
    for (layer, loads) in layers {
        for (expert, rows) in loads.iter().enumerate() {
            let (layer, expert) = (layer.to_string(), expert.to_string());
            page.line("expert_rows_total", &[("layer", &layer), ("expert", &expert)], rows);
        }
    }
}

fn engine(page: &mut Page, gauges: &Gauges) {
    page.single("running", "gauge", "Sequences in flight.", gauges.running);
    page.single("waiting", "gauge", "Requests in the queue.", gauges.waiting);
    pages(page, gauges);
    let counters = [
        (
            "prefix_cache_lookup_tokens_total",
            "Tokens looked up by sequences that got a place.",
            gauges.prefix_tokens.0,
        ),
        ("prefix_cache_hit_tokens_total", "Of these, tokens found.", gauges.prefix_tokens.1),
        ("preemptions_total", "Times a sequence lost its pages.", gauges.preemptions),
        (
            "prompt_tokens_total",
            "Prompt tokens computed, each once; what the prefix cache had is not among them.",
            gauges.tokens.0,
        ),
        ("generated_tokens_total", "Tokens drawn.", gauges.tokens.1),
        (
            "recursion_steps_total",
            "Recursions of all rows, of those computed again too.",
            gauges.recursion_steps.0,
        ),
        (
            "dense_equivalent_steps_total",
            "Recursions of the same rows at full depth.",
            gauges.recursion_steps.1,
        ),
        ("ticks_total", "Steps of the scheduler.", gauges.ticks),
        ("engine_cancelled_total", "Sequences that the engine ended on request.", gauges.cancelled),
        ("engine_failed_total", "Sequences that failed inside the engine.", gauges.failed),
        ("engine_refused_total", "Sequences that found the queue full.", gauges.refused),
    ];
    for (name, help, value) in counters {
        page.single(name, "counter", help, value);
    }
    page.single(
        "tick_seconds_total",
        "counter",
        "Time inside scheduler steps.",
        seconds(gauges.tick_us),
    );
    page.single(
        "operation_seconds_total",
        "counter",
        "Time of scheduler steps inside passes of the model.",
        seconds(gauges.operation_us),
    );
    page.head("recursion_rows_total", "counter", "Rows that took each recursion, from 1.");
    for (recursion, rows) in gauges.rows_by_recursion.iter().enumerate() {
        page.line("recursion_rows_total", &[("recursion", &(recursion + 1).to_string())], rows);
    }
    experts(page, &gauges.experts);
    page.single(
        "depth_cap",
        "gauge",
        "Largest depth of new tokens now; lower in a brown-out.",
        gauges.depth_cap,
    );
    page.head("token_depth", "histogram", "Rows by their depth, those computed again too.");
    let mut below = 0;
    for (depth, rows) in gauges.depths.iter().enumerate() {
        below += rows;
        page.line("token_depth_bucket", &[("le", &depth.to_string())], below);
    }
    let sum: u64 = gauges.depths.iter().zip(0u64..).map(|(rows, depth)| rows * depth).sum();
    page.line("token_depth_bucket", &[("le", "+Inf")], below);
    page.line("token_depth_sum", &[], sum);
    page.line("token_depth_count", &[], below);
}
