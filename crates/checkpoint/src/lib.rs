//! Named tensors and JSON state on disk, written so that a crash, a kill or a full disk loses
//! nothing. Knows no model and no tensor library.
//!
//! A checkpoint is a folder `parent/<name>/` with `<stem>.safetensors` for each group of tensors,
//! `<key>.json` for each piece of state, further files as given, and `manifest.json` with the size
//! and SHA-256 of each of them. [`save`] builds it as `parent/.tmp-<name>/`, syncs every file and
//! the folder, and renames it into place; [`load`] and [`newest_valid`] trust nothing that the
//! manifest does not confirm.

mod building;
mod disk;
mod error;
mod fault;
mod hash;
mod header;
mod load;
mod manifest;
mod misfit;
mod names;
mod recover;
mod save;
mod snapshot;
mod store;
mod tensor_file;

pub use building::{FileWriter, FolderWriter, write_folder};
pub use disk::{Disk, OpenFile, RealDisk};
pub use error::{Damaged, LoadError, SaveError};
pub use fault::{Fault, FaultPlan, FaultSpecError, FaultyDisk, Op, OpKind};
pub use hash::sha256_file;
pub use header::Dtype;
pub use load::{Loaded, load, load_json};
pub use misfit::{FileError, Misfit, quote};
pub use names::step_name;
pub use recover::recover;
pub use save::{save, save_new};
pub use snapshot::{NamedTensor, Pieces, Snapshot, TensorData};
pub use store::{CheckpointEntry, list, newest_json, newest_valid, prune, try_list};
pub use tensor_file::{TensorFile, open_safetensors};
