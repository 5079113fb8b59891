//! What to do about what a file system refuses.

use std::io;

/// The next move after such an error, as an imperative without a subject: `check the path`.
pub fn next_move(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => "check the path",
        Kind::PermissionDenied => "check the permissions",
        Kind::NotADirectory => "name a folder: something on this path is a file",
        Kind::IsADirectory => "name a file: a folder is there",
        Kind::InvalidInput => "put a plain file there, or name one",
        Kind::AlreadyExists => "move away what is there, or choose another path",
        Kind::StorageFull | Kind::QuotaExceeded => "make room on the disk",
        Kind::ReadOnlyFilesystem => "choose a place that can be written",
        Kind::FileTooLarge | Kind::InvalidData => "check that it is the file that is meant",
        _ => "check the disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Errors as the system makes them.
    #[test]
    fn each_refusal_has_its_next_move() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, b"\xff").expect("writes");
        let cases = [
            (fs::read(folder.path().join("none")).err(), "check the path"),
            (fs::read(file.join("in it")).err(), "something on this path is a file"),
            (fs::read_dir(&file).err(), "something on this path is a file"),
            (fs::write(folder.path(), "x").err(), "a folder is there"),
            (fs::create_dir(&file).err(), "move away"),
            (fs::write("/dev/full", "x").err(), "make room"),
            (crate::read(folder.path(), 9).err(), "a plain file"),
            (crate::read(&file, 0).err(), "the file that is meant"),
            (crate::read_text(&file, 9).err(), "the file that is meant"),
            (Some(io::Error::from(io::ErrorKind::PermissionDenied)), "check the permissions"),
            (Some(io::Error::other("odd")), "check the disk"),
        ];
        for (error, expected) in cases {
            let error = error.expect(expected);
            assert!(next_move(&error).contains(expected), "{error}: {}", next_move(&error));
        }
    }
}
