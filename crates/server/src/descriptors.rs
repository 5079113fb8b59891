//! How many connections the system's limit of open files allows.

use std::fs;

/// Connections that are told at a time that there is no room.
pub(crate) const REFUSALS: usize = 16;

/// Descriptors that are left for connections that are closing, and for whatever else is opened.
const RESERVE: usize = 32;

/// At most `asked` connections, fewer if the process may not hold as many.
pub(crate) fn connections(asked: usize) -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let Some(limit) = open_files(&limits) else { return asked };
    let most = asked.min(limit.saturating_sub(open + REFUSALS + RESERVE).max(1));
    if most < asked {
        tracing::info!(asked, most, limit, "`ulimit -n` allows fewer connections than asked for");
    }
    most
}

/// The soft limit of open files in the text of `/proc/self/limits`; `None` without one.
fn open_files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let head = "Limit                     Soft Limit           Hard Limit           Units\n";
        let line = "Max open files            1024                 524288               files\n";
        assert_eq!(open_files(&format!("{head}{line}")), Some(1024));
        assert_eq!(open_files(&line.replace("1024 ", "unlimited ")), None);
        assert_eq!(open_files(head), None);
        assert_eq!(connections(1), 1);
        assert!(connections(usize::MAX) < usize::MAX, "no system allows that");
    }
}
