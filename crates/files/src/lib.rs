//! Files that are opened, written and locked in one way, so that a pipe in the place of a file
//! hangs no reader, a full disk leaves no half of a file, and two processes do not write into one
//! folder. Knows no format.

mod fixed;
mod lock;
mod new_file;
mod next_move;
mod open;

pub use fixed::FixedFile;
pub use lock::{FolderLock, FolderTurn, LockError};
pub use new_file::{NewFile, folder_of, write_whole};
pub use next_move::next_move;
pub use open::{open, read, read_open, read_text, skip_mark};
