//! `lathe render-templates`: the process in which `lathe serve` renders chat templates. It may end
//! for want of memory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use server::TemplateProgram;

/// Bytes of address space, those of the program itself among them.
const MEMORY: u64 = 512 << 20;

/// The allocator takes a gigabyte of addresses ahead, which is more than this process may have.
const NOTHING_AHEAD: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "0");

/// What is started in the place of this program.
static PROGRAM: OnceLock<(PathBuf, Vec<OsString>)> = OnceLock::new();

/// Names the program that calls [`run`], where it is not this one with `render-templates`. The
/// first call counts.
pub fn set(program: PathBuf, arguments: Vec<OsString>) {
    let _ = PROGRAM.set((program, arguments));
}

/// The program that is started for templates.
pub fn program() -> TemplateProgram {
    let (name, value) = NOTHING_AHEAD;
    let environment = vec![(name.into(), value.into())];
    match PROGRAM.get().cloned() {
        Some((program, arguments)) => TemplateProgram { program, arguments, environment },
        None => TemplateProgram { environment, ..TemplateProgram::default() },
    }
}

/// Renders until the server hangs up.
pub fn run() -> Result<()> {
    ops::bound_address_space(MEMORY).context("bounding the memory of this process")?;
    server::render_templates().context("rendering templates for a server")
}
