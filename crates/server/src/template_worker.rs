//! A process of its own in which chat templates run.
//!
//! A template is a program that somebody else wrote. Too deep a nesting overflows the stack and too
//! large a value is more memory than there is, and either ends a process. The server therefore
//! hands templates to a process that may end: it has little memory (its program sees to that before
//! it calls [`render_templates`]) and little time, and a request whose rendering ended it fails
//! alone.

use crate::json::Json;
use crate::template::{ChatTemplate, TemplateInput};
use crate::template_frames as frames;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// The first message: what to render from now on.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) source: String,
    pub(crate) fuel: u64,
    pub(crate) most_bytes: usize,
    pub(crate) most_ms: u64,
    /// Whether what `{% generation %}` holds is marked.
    pub(crate) marking: bool,
}

/// Every further message: one rendering.
#[derive(Serialize, Deserialize)]
pub(crate) struct Rendering {
    pub(crate) input: TemplateInput,
    /// More names that the template may use, from the request.
    pub(crate) more: Option<Json>,
}

/// First byte of an answer whose text is the rendering.
pub(crate) const RENDERED: u8 = 0;
/// First byte of an answer whose text is the template's refusal.
pub(crate) const REFUSED: u8 = 1;

/// Renders chat templates for the server that started this process, which is at the other end of
/// standard input, until it hangs up. The program bounds its own memory first.
///
/// # Errors
/// Standard input that is no socket of a server, or a server that sends nonsense.
pub fn render_templates() -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let setup: Setup = serde_json::from_slice(&frames::read(&mut socket, usize::MAX)?)?;
    let watch = Watch::start(Duration::from_millis(setup.most_ms));
    let new = if setup.marking { ChatTemplate::marking } else { ChatTemplate::new };
    let template = watch.over(|| new(&setup.source, setup.fuel, setup.most_bytes));
    answer(&mut socket, template.as_ref().map(|_| "").map_err(String::as_str))?;
    let Ok(template) = template else { return Ok(()) };
    loop {
        let message = match frames::read(&mut socket, usize::MAX) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            message => message?,
        };
        let Rendering { input, more } = serde_json::from_slice(&message)?;
        let rendered = watch.over(|| template.render(&input, more.as_ref()));
        answer(&mut socket, rendered.as_deref().map_err(String::as_str))?;
    }
}

fn answer(socket: &mut UnixStream, result: Result<&str, &str>) -> io::Result<()> {
    let (kind, text) = match result {
        Ok(text) => (RENDERED, text),
        Err(text) => (REFUSED, text),
    };
    frames::write(socket, &[&[kind], text.as_bytes()].concat())
}

/// Ends this process when a piece of work takes too long. The server does so, too, but might be
/// gone.
struct Watch(Sender<()>);

impl Watch {
    fn start(most: Duration) -> Self {
        let (to, from) = channel();
        std::thread::spawn(move || watch(&from, most));
        Self(to)
    }

    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        // The other end is gone only where the process is ending.
        let _ = self.0.send(());
        let result = work();
        let _ = self.0.send(());
        result
    }
}

/// Beginnings and ends come in turns.
fn watch(from: &Receiver<()>, most: Duration) {
    while from.recv().is_ok() {
        match from.recv_timeout(most) {
            Ok(()) => (),
            Err(RecvTimeoutError::Timeout) => std::process::exit(1),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
