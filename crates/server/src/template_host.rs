//! The server's side of the processes that render chat templates: started when one is needed, kept
//! for the next request, ended when one takes too long, replaced when one died.

use crate::settings::{ServerLimits, TemplateProgram};
use crate::template_frames::{self as frames, Timed};
use crate::template_worker::{RENDERED, Rendering, Setup};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time for a process to start, besides the time of its template.
const START: Duration = Duration::from_secs(10);

/// A chat template with the processes that render it.
pub(crate) struct TemplateHost {
    program: TemplateProgram,
    setup: Vec<u8>,
    most_bytes: usize,
    time: Duration,
    /// Time for a process to start and to compile the template.
    to_start: Duration,
    /// Processes that wait for work.
    idle: Mutex<Vec<Worker>>,
}

/// Why there is no rendering.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the template refused, or the bound that it broke.
    Template(String),
    /// No process can be started.
    Program(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Template(text) | Failure::Program(text) => f.write_str(text),
        }
    }
}

/// A process that has compiled the template.
struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself, and then neither has anything to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl TemplateHost {
    /// Starts a process and has it compile the template, whose renderings have marks around what
    /// `{% generation %}` holds, or none.
    ///
    /// # Errors
    /// What the template's author wrote wrong, or why there is no process.
    pub(crate) fn start(
        source: &str,
        program: &TemplateProgram,
        limits: &ServerLimits,
        marking: bool,
    ) -> Result<Self, Failure> {
        let time = limits.template_time;
        let setup = Setup {
            source: source.to_owned(),
            fuel: limits.template_fuel,
            most_bytes: limits.template_bytes,
            // The server's own clock comes first.
            most_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(2),
            marking,
        };
        let host = Self {
            program: program.clone(),
            setup: serde_json::to_vec(&setup).map_err(|e| Failure::Program(e.to_string()))?,
            most_bytes: limits.template_bytes,
            time,
            to_start: START + time,
            idle: Mutex::default(),
        };
        let worker = host.worker()?;
        host.keep(worker);
        Ok(host)
    }

    /// # Errors
    /// What the template refused, the bound that it broke, or why there is no process.
    pub(crate) fn render(&self, rendering: &Rendering) -> Result<String, Failure> {
        let message =
            serde_json::to_vec(rendering).map_err(|e| Failure::Template(e.to_string()))?;
        let idle = self.idle().pop();
        if let Some(worker) = idle {
            // One that has died since its last work says nothing about this one.
            if let Some(result) = self.ask(worker, &message) {
                return result;
            }
        }
        let worker = self.worker()?;
        self.ask(worker, &message).unwrap_or_else(|| Err(ended()))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        // A list of whole processes: a panic elsewhere leaves nothing half done.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, worker: Worker) {
        self.idle().push(worker);
    }

    /// The answer of `worker`, which is kept for the next request if it gives one in time; none if
    /// it died.
    fn ask(&self, worker: Worker, message: &[u8]) -> Option<Result<String, Failure>> {
        match worker.exchange(message, self.most_bytes, self.time) {
            Ok(answer) => {
                self.keep(worker);
                Some(answer)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Some(Err(self.slow())),
            Err(_) => None,
        }
    }

    fn slow(&self) -> Failure {
        let seconds = self.time.as_secs_f64();
        Failure::Template(format!("it ran longer than {seconds} s, which is all that it may"))
    }

    /// A fresh process that has compiled the template.
    fn worker(&self) -> Result<Worker, Failure> {
        let program = |what: &str, error: io::Error| {
            let path = self.program.program.display();
            Failure::Program(format!("{what} the process that renders templates ({path}): {error}"))
        };
        let worker = Worker::start(&self.program).map_err(|e| program("cannot start", e))?;
        match worker.exchange(&self.setup, self.most_bytes, self.to_start) {
            Ok(Ok(_)) => Ok(worker),
            Ok(Err(refused)) => Err(refused),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(self.not_ready()),
            Err(_) => Err(ended()),
        }
    }

    fn not_ready(&self) -> Failure {
        let seconds = self.to_start.as_secs_f64();
        Failure::Template(format!(
            "a process to render it was not ready within {seconds} s, in which it starts and \
             compiles the template: the machine is busy, or the template takes long to compile"
        ))
    }
}

fn ended() -> Failure {
    let text = "it needs more memory, or nests deeper, than a template may: its process ended";
    Failure::Template(text.to_owned())
}

impl Worker {
    fn start(program: &TemplateProgram) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(&program.program)
            .args(&program.arguments)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal to the server's group is the server's: it may still have requests to finish.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Sends a message and waits for its answer, both within `time`.
    fn exchange(
        &self,
        message: &[u8],
        most_bytes: usize,
        time: Duration,
    ) -> io::Result<Result<String, Failure>> {
        let until = Instant::now() + time;
        let mut timed = Timed { socket: &self.socket, until };
        frames::write(&mut timed, message)?;
        // Refusals quote the template, which may be long.
        let answer = frames::read(&mut timed, most_bytes.max(1 << 20) + 1)?;
        let (kind, text) = answer.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(if *kind == RENDERED { Ok(text) } else { Err(Failure::Template(text)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that never answers: what is slow is the start, not a rendering.
    #[test]
    fn a_process_that_does_not_come_up_is_told_as_such() {
        let program = TemplateProgram {
            program: "sleep".into(),
            arguments: vec!["60".into()],
            environment: Vec::new(),
        };
        let host = TemplateHost {
            program,
            setup: b"{}".to_vec(),
            most_bytes: 1 << 10,
            time: Duration::from_secs(3),
            to_start: Duration::from_millis(50),
            idle: Mutex::default(),
        };
        let Err(failure) = host.worker() else { panic!("nothing answers") };
        let said = failure.to_string();
        assert!(said.contains("not ready within 0.05 s") && said.contains("busy"), "{said}");
        assert!(!said.contains("ran longer"), "{said}");
    }
}
