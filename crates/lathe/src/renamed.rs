//! Flags that have another name than they had: who uses the old one is told the new one.

use clap::CommandFactory;

use crate::arguments::Arguments;

/// A flag of a command and its present name.
struct Renamed {
    /// The command's words, or their beginning; empty for all commands.
    command: &'static str,
    old: &'static str,
    new: &'static str,
}

const fn flag(command: &'static str, old: &'static str, new: &'static str) -> Renamed {
    Renamed { command, old, new }
}

static FLAGS: [Renamed; 8] = [
    flag("convert", "--kv", "--kv-sharing"),
    flag("serve", "--kv", "--kv-format"),
    flag("bench", "--kv", "--kv-format"),
    flag("", "--rows", "--max-batch-tokens"),
    flag("", "--running", "--max-seqs"),
    flag("", "--chunk", "--prefill-chunk"),
    flag("", "--leave-rows", "--coda-batch"),
    flag("", "--leave-wait", "--coda-wait"),
];

/// The present name of `old`, a flag that the command line `arguments` (without the program) does
/// not know; nothing if its command does not take the present name either.
pub(crate) fn flag_of(arguments: &[String], old: &str) -> Option<&'static str> {
    let words: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let line = words.join(" ");
    let command = command_of(&words);
    FLAGS
        .iter()
        .filter(|renamed| renamed.old == old && line.starts_with(renamed.command))
        .map(|renamed| renamed.new)
        .find(|new| command.get_arguments().any(|a| a.get_long() == new.strip_prefix("--")))
}

/// The command that the `words` of a command line name.
fn command_of(words: &[&str]) -> clap::Command {
    let mut command = Arguments::command();
    for word in words {
        match command.find_subcommand(word) {
            Some(inner) => command = inner.clone(),
            None => break,
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_name(line: &str, old: &str) -> Option<&'static str> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        flag_of(&arguments, old)
    }

    #[test]
    fn one_old_flag_has_a_new_name_for_each_of_its_meanings() {
        assert_eq!(new_name("-v convert run --kv shared", "--kv"), Some("--kv-sharing"));
        assert_eq!(new_name("serve run --kv bf16", "--kv"), Some("--kv-format"));
        assert_eq!(new_name("bench decode run --kv bf16", "--kv"), Some("--kv-format"));
        assert_eq!(new_name("train recipe.toml --kv shared", "--kv"), None);
        assert_eq!(new_name("serve run --rows 8", "--rows"), Some("--max-batch-tokens"));
        assert_eq!(new_name("serve run --rowz 8", "--rowz"), None);
        assert_eq!(new_name("bench serve run --rows 8", "--rows"), Some("--max-batch-tokens"));
    }

    #[test]
    fn a_command_without_the_new_flag_is_not_told_of_it() {
        for (line, old) in [
            ("inspect run --running 1", "--running"),
            ("data build --rows 1", "--rows"),
            ("generate run --rows 1", "--rows"),
            ("bench kernels --kv bf16", "--kv"),
            ("bench growth run --kv bf16", "--kv"),
            ("bench decode run --rows 1", "--rows"),
        ] {
            assert_eq!(new_name(line, old), None, "{line}");
        }
    }

    /// A new name that no command takes would send people in circles; beside the new name the old
    /// one would never be refused.
    #[test]
    fn commands_take_the_new_names_alone() {
        let mut taken = [false; FLAGS.len()];
        let mut commands = vec![Arguments::command()];
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let takes = |flag: &str| {
                command.get_arguments().any(|a| a.get_long() == flag.strip_prefix("--"))
            };
            for (flag, taken) in FLAGS.iter().zip(&mut taken).filter(|(flag, _)| takes(flag.new)) {
                assert!(!takes(flag.old), "{} takes {}", command.get_name(), flag.old);
                *taken = true;
            }
        }
        for (flag, taken) in FLAGS.iter().zip(taken) {
            assert!(taken, "{}", flag.new);
        }
    }
}
