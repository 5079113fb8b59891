//! Limits and timeouts of the server, all with defaults that are safe to expose.

use crate::backend::AdapterSource;
use crate::json::cut;
use crate::origin;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How large a single request may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Prompts of one request.
    pub prompts: usize,
    /// Continuations of one prompt.
    pub n: usize,
    /// Sequences of one request: its prompts times its continuations of each.
    pub sequences: usize,
    /// Strings in the `stop` of one request.
    pub stops: usize,
    /// Bytes of one stop string.
    pub stop_bytes: usize,
    /// Ids in the `stop_token_ids` of one request.
    pub stop_ids: usize,
    /// Most likely tokens reported beside each token.
    pub logprobs: usize,
    /// Token ids that the `logit_bias` of one request may name.
    pub logit_bias: usize,
    /// Bytes of text that one request to `/tokenize` may hold.
    pub tokenize_bytes: usize,
    /// Bytes of text that a chat template may produce.
    pub template_bytes: usize,
    /// Template instructions one rendering may run.
    pub template_fuel: u64,
    /// How long one rendering may take.
    pub template_time: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            prompts: 64,
            n: 16,
            sequences: 128,
            stops: 16,
            stop_bytes: 256,
            stop_ids: 128,
            logprobs: 20,
            logit_bias: 1024,
            tokenize_bytes: 1 << 20,
            template_bytes: 16 << 20,
            template_fuel: 300_000,
            template_time: Duration::from_secs(5),
        }
    }
}

/// The program that renders chat templates: it bounds its own memory and calls
/// [`render_templates`](crate::render_templates).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateProgram {
    /// Its path, or its name where it is to be searched for.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
    /// Variables of its environment, beside those of the server.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for TemplateProgram {
    /// This program once more, with the argument `render-templates`.
    fn default() -> Self {
        // On Linux this name means the file that runs here, also when another one took its place.
        let running = PathBuf::from("/proc/self/exe");
        let program = match running.exists() {
            true => running,
            false => std::env::current_exe().unwrap_or(running),
        };
        Self { program, arguments: vec!["render-templates".into()], environment: Vec::new() }
    }
}

/// How the server behaves. [`ServerSettings::default`] holds the documented defaults.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Size limits of a request.
    pub limits: ServerLimits,
    /// Keys of which one must come as `Authorization: Bearer`; empty for no check.
    pub api_keys: Vec<String>,
    /// Names under which the server may be asked, beside addresses and `localhost`; `*` for all. If
    /// empty, names are checked only at a loopback address without keys.
    pub allow_hosts: Vec<String>,
    /// Sites whose pages may read answers, such as `https://chat.example`; `*` for all.
    pub cors_origins: Vec<String>,
    /// Refuse unknown fields instead of naming them in `x-lathe-ignored`.
    pub strict: bool,
    /// A request ends with an error when it has taken this long.
    pub deadline: Duration,
    /// A connection closes when a request's head takes this long.
    pub header_read: Duration,
    /// A request is refused when its body takes this long.
    pub body_read: Duration,
    /// A connection without a request closes after this long.
    pub keep_alive: Duration,
    /// Connections at a time; a new one beyond takes the place of the one that has waited longest
    /// for a request.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Events kept for a reader; the sequence pauses when they are full.
    pub events: usize,
    /// A reader that takes nothing for this long is dropped.
    pub slow_reader: Duration,
    /// A stream that has been silent for this long gets a comment line.
    pub ping: Duration,
    /// How long requests are still welcome after the shutdown signal, while `/health` answers 503
    /// and every answer closes its connection: the time that balancers take to notice.
    pub lame_duck: Duration,
    /// How long requests in flight may go on after that.
    pub drain: Duration,
    /// `/health` reports trouble when work waits and the engine has not moved for this long.
    pub stuck: Duration,
    /// Threads that read prompts at a time, and as many that read conversations.
    pub readers: usize,
    /// Requests to `/tokenize` that are read at a time.
    pub tokenizing: usize,
    /// A prompt that is not read within this time is refused.
    pub reading: Duration,
    /// What renders chat templates.
    pub template_program: TemplateProgram,
    /// Where clients may load adapters from; nowhere without one.
    pub adapter_source: Option<Arc<dyn AdapterSource>>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            limits: ServerLimits::default(),
            api_keys: Vec::new(),
            allow_hosts: Vec::new(),
            cors_origins: Vec::new(),
            strict: false,
            deadline: Duration::from_secs(600),
            header_read: Duration::from_secs(10),
            body_read: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            connections: 1024,
            head_bytes: 32 << 10,
            events: 256,
            slow_reader: Duration::from_secs(30),
            ping: Duration::from_secs(10),
            lame_duck: Duration::ZERO,
            drain: Duration::from_secs(30),
            stuck: Duration::from_secs(30),
            readers: 4,
            tokenizing: 2,
            reading: Duration::from_secs(30),
            template_program: TemplateProgram::default(),
            adapter_source: None,
        }
    }
}

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting that cannot work.
    #[error(
        "setting `{name}` is {found}, expected {expected}; change it or leave it at its default"
    )]
    Setting {
        /// The field of [`ServerSettings`] or [`ServerLimits`].
        name: &'static str,
        /// Its value, or what is wrong with it where that is secret.
        found: String,
        /// The values with which serving works.
        expected: &'static str,
    },
    /// Something about the model that cannot be served.
    #[error("the model's {name} is {found}, expected {expected}; check the files of the model")]
    Model {
        /// The part: a number of [`ModelInfo`](crate::ModelInfo), its id, a token, the tokenizer.
        name: &'static str,
        /// What the model has there.
        found: String,
        /// What a model that can be served has there.
        expected: String,
    },
    /// The listening socket failed.
    #[error(
        "the listening socket failed: {0}; \
         check that the address is free and belongs to this machine"
    )]
    Socket(#[from] std::io::Error),
}

/// Printable ASCII without spaces, so that a header can carry it.
fn is_sound_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

impl ServerSettings {
    /// Checks that no setting makes serving impossible.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), ServeError> {
        let counts = [
            ("body_bytes", self.limits.body_bytes),
            ("prompts", self.limits.prompts),
            ("n", self.limits.n),
            ("sequences", self.limits.sequences),
            ("connections", self.connections),
            ("events", self.events),
            ("readers", self.readers),
            ("tokenizing", self.tokenizing),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(ServeError::Setting {
                name,
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        if self.head_bytes < 8192 {
            let found = self.head_bytes.to_string();
            return Err(ServeError::Setting {
                name: "head_bytes",
                found,
                expected: "at least 8192",
            });
        }
        if !self.api_keys.iter().all(|key| is_sound_key(key)) {
            let found = "a key that is empty or holds spaces or other characters".to_owned();
            return Err(ServeError::Setting {
                name: "api_keys",
                found,
                expected: "printable ASCII without spaces",
            });
        }
        self.check_names()?;
        let times = [
            ("deadline", self.deadline),
            ("header_read", self.header_read),
            ("body_read", self.body_read),
            ("keep_alive", self.keep_alive),
            ("slow_reader", self.slow_reader),
            ("ping", self.ping),
            ("reading", self.reading),
            ("template_time", self.limits.template_time),
        ];
        match times
            .iter()
            .find(|(_, time)| time.is_zero() || *time > Duration::from_secs(86_400 * 365))
        {
            Some((name, time)) => {
                let found = format!("{time:?}");
                Err(ServeError::Setting {
                    name,
                    found,
                    expected: "more than nothing, at most a year",
                })
            }
            None => Ok(()),
        }
    }

    fn check_names(&self) -> Result<(), ServeError> {
        if let Some(name) = self.allow_hosts.iter().find(|name| !origin::is_host(name)) {
            let expected = "a name without port, or *";
            return Err(ServeError::Setting { name: "allow_hosts", found: cut(name), expected });
        }
        if let Some(name) = self.cors_origins.iter().find(|name| !origin::is_origin(name)) {
            let expected = "http://NAME or https://NAME, with a port if it has one, or *";
            return Err(ServeError::Setting { name: "cors_origins", found: cut(name), expected });
        }
        Ok(())
    }
}
