//! Adapters that clients of `lathe serve` load while it runs, from folders below one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use engine::EngineHandle;
use server::{AdapterRefusal, AdapterSource};
use train::Stored;

use crate::open;
use crate::serve::{adapted_fingerprint, fingerprint};
use crate::serving_arguments::RuntimeAdapters;

/// Adapters at a time where nothing is said.
const USUAL_COUNT: usize = 8;
/// Their memory where nothing is said.
const USUAL_MEBIBYTES: u64 = 2048;
/// The settings of a folder of adapters.
const SETTINGS: &str = "adapter_config.json";
/// The numbers of a folder of adapters.
const TENSORS: &str = "adapter_model.safetensors";

/// Where adapters come from, and what those that came take.
pub(crate) struct AdapterRoot {
    root: PathBuf,
    base: Stored,
    /// The fingerprint of the base, which takes a look at every weight.
    base_hash: u64,
    handle: Arc<EngineHandle>,
    most: usize,
    most_bytes: u64,
    /// Bytes beside the base by the number of the adapter.
    loaded: Mutex<BTreeMap<u32, u64>>,
}

impl fmt::Debug for AdapterRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adapters below {}", self.root.display())
    }
}

impl AdapterRoot {
    /// Adapters of `base` from folders below the one that `options` name, if they do.
    pub(crate) fn open(
        options: &RuntimeAdapters,
        base: Stored,
        handle: &Arc<EngineHandle>,
    ) -> Result<Option<Arc<dyn AdapterSource>>> {
        let Some(root) = &options.adapter_root else {
            ensure!(
                options.max_adapters.is_none() && options.max_adapter_memory.is_none(),
                "--max-adapters and --max-adapter-memory bound what clients load: expected \
                 --adapter-root beside them, found none"
            );
            return Ok(None);
        };
        let root = std::fs::canonicalize(root)
            .with_context(|| format!("--adapter-root {}", root.display()))?;
        ensure!(root.is_dir(), "--adapter-root {}: expected a folder", root.display());
        let plan = base.model.plan();
        ensure!(
            plan.recursions.is_empty() && plan.stored == base.model.config().layers,
            "--adapter-root: expected a model whose layers are used once, as other programs know \
             it; this one shares layers, and takes no adapters of theirs"
        );
        Ok(Some(Arc::new(Self {
            root,
            base_hash: fingerprint(&base.model),
            base,
            handle: handle.clone(),
            most: options.max_adapters.unwrap_or(USUAL_COUNT),
            most_bytes: options.max_adapter_memory.unwrap_or(USUAL_MEBIBYTES) << 20,
            loaded: Mutex::default(),
        })))
    }

    /// The folder that a client names, which must be below the root.
    fn folder(&self, path: &str) -> Result<PathBuf, AdapterRefusal> {
        let folder = std::fs::canonicalize(self.root.join(path)).map_err(|_| missing(path))?;
        let below = folder.starts_with(&self.root) && folder != self.root;
        if !(below && folder.is_dir()) {
            return Err(missing(path));
        }
        // A file within may be a link, too.
        for name in [SETTINGS, TENSORS] {
            let file = folder.join(name);
            if std::fs::canonicalize(&file).is_ok_and(|file| !file.starts_with(&self.root)) {
                return Err(missing(&format!("{path}/{name}")));
            }
        }
        Ok(folder)
    }

    /// Refuses one more adapter where there are as many as there may be, or no room for `bytes`.
    ///
    /// The one that makes place counts no more; its memory does, as requests go on with it.
    fn room(
        &self,
        loaded: &BTreeMap<u32, u64>,
        bytes: u64,
        instead: Option<u32>,
    ) -> Result<(), AdapterRefusal> {
        let stay = loaded.keys().filter(|number| instead != Some(**number));
        let (count, taken) = (stay.count(), loaded.values().sum::<u64>());
        if count >= self.most {
            return Err(AdapterRefusal::Full(format!(
                "{count} adapters are loaded, or still used by requests, expected fewer than {} \
                 (--max-adapters): unload one",
                self.most
            )));
        }
        if taken.saturating_add(bytes) > self.most_bytes {
            return Err(AdapterRefusal::Full(format!(
                "the adapter takes {bytes} bytes beside the {taken} of others, expected at most {} \
                 together (--max-adapter-memory): unload one",
                self.most_bytes
            )));
        }
        Ok(())
    }

    fn loaded_from(
        &self,
        folder: &Path,
        instead: Option<u32>,
    ) -> Result<(u32, String), AdapterRefusal> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|&number, _| self.handle.holds_adapter(number));
        // A file of low rank is shorter than what becomes of it.
        let file = std::fs::metadata(folder.join(TENSORS)).map_or(0, |found| found.len());
        self.room(&loaded, file, instead)?;
        let model = open::with_adapter(&self.base, folder).map_err(unusable)?;
        let beside = model.weights_beside(&self.base.model);
        let bytes = beside.map(|(_, weight)| weight.bytes() as u64).sum();
        self.room(&loaded, bytes, instead)?;
        open::prepare_beside(&model, &self.base, None).map_err(unusable)?;
        let fingerprint = adapted_fingerprint((&self.base.model, self.base_hash), &model);
        let number = self.handle.add_adapter(model);
        let number = number.map_err(|error| AdapterRefusal::Unusable(error.to_string()))?;
        loaded.insert(number, bytes);
        Ok((number, fingerprint))
    }
}

fn unusable(error: anyhow::Error) -> AdapterRefusal {
    AdapterRefusal::Unusable(format!("{error:#}"))
}

fn missing(path: &str) -> AdapterRefusal {
    let path: String = path.chars().take(200).collect();
    AdapterRefusal::Missing(format!(
        "`lora_path` is `{path}`, expected the folder of an adapter below the one that the server \
         was started with (--adapter-root)"
    ))
}

impl AdapterSource for AdapterRoot {
    fn load(&self, path: &str, instead: Option<u32>) -> Result<(u32, String), AdapterRefusal> {
        self.loaded_from(&self.folder(path)?, instead)
    }

    fn unload(&self, number: u32) {
        self.handle.retire_adapter(number);
    }
}
