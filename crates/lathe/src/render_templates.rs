//! `lathe render-templates`: the process in which `lathe serve` renders chat templates. It may end
//! for want of memory.

use std::process::ExitCode;

use anyhow::{Context, Result};
use server::TemplateProgram;

/// Bytes of address space, those of the program itself among them.
const MEMORY: u64 = 512 << 20;

/// The allocator takes a gigabyte of addresses ahead, which is more than this process may have.
const NOTHING_AHEAD: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "0");

/// This program, as the server starts it for templates.
pub(crate) fn program() -> TemplateProgram {
    let (name, value) = NOTHING_AHEAD;
    TemplateProgram { environment: vec![(name.into(), value.into())], ..TemplateProgram::default() }
}

/// Renders until the server hangs up.
pub(crate) fn run() -> Result<ExitCode> {
    ops::bound_address_space(MEMORY).context("bounding the memory of this process")?;
    server::render_templates().context("rendering templates for a server")?;
    Ok(ExitCode::SUCCESS)
}
