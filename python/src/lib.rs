//! Lathe as a Python package: the same rooms behind calls of Python. What a path, a recipe or a
//! text becomes is said in `opening`, which the command line uses as well; this crate turns
//! arguments, results and errors, releases the GIL and hears Ctrl-C.

mod answers;
mod errors;
mod json;
mod model;
mod of_process;
mod opened;
mod records;
mod request;
mod stream;
mod tokenizer;
mod training;
mod work;

use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::prelude::*;

/// Remarks go to the logger "lathe", whose warnings Python shows on standard error.
fn remark(text: &str) {
    // Nobody hears it once the interpreter ends.
    Python::try_attach(|py| {
        let told = py
            .import("logging")
            .and_then(|logging| logging.call_method1("getLogger", ("lathe",)))
            .and_then(|logger| logger.call_method1("warning", ("%s", text)));
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    });
}

/// Takes over what the package knows of its surroundings: called once, at import.
#[pyfunction]
fn _begin(program: PathBuf, arguments: Vec<OsString>, cache: Option<PathBuf>) {
    ops::keep_freed_pages();
    opening::notes::listen(remark);
    opening::render_templates::set(program, arguments);
    opening::cache::set(cache);
}

/// Renders chat templates until whoever started this process hangs up.
#[pyfunction]
fn _render_templates() -> PyResult<()> {
    opening::render_templates::run().map_err(|error| errors::failed(&error))
}

/// How many threads compute; 0 for one a processor. It counts for everything that has not begun.
#[pyfunction]
fn _set_threads(count: usize) -> PyResult<()> {
    if work::has_begun() {
        return Err(errors::value(
            "the threads of this process compute already: set their number before the first model \
             is opened or trained",
        ));
    }
    opening::threads::set(Some(count));
    Ok(())
}

#[pymodule]
fn _lathe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::PyModel>()?;
    module.add_class::<tokenizer::PyTokenizer>()?;
    module.add_class::<answers::Generation>()?;
    module.add_class::<answers::Piece>()?;
    module.add_class::<answers::Scores>()?;
    module.add_class::<answers::Logits>()?;
    module.add_class::<answers::Hidden>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<training::Step>()?;
    module.add_class::<training::Training>()?;
    module.add_class::<records::RoutingTrace>()?;
    module.add_function(wrap_pyfunction!(model::load, module)?)?;
    module.add_function(wrap_pyfunction!(training::begin, module)?)?;
    module.add_function(wrap_pyfunction!(records::read_trace, module)?)?;
    module.add_function(wrap_pyfunction!(records::_read_log, module)?)?;
    module.add_function(wrap_pyfunction!(_begin, module)?)?;
    module.add_function(wrap_pyfunction!(_render_templates, module)?)?;
    module.add_function(wrap_pyfunction!(_set_threads, module)?)?;
    Ok(())
}
