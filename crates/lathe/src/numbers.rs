//! Ranges of the numbers on the command line: what is outside is refused by its option, before
//! anything is computed with it.

use std::fmt::Display;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;

/// Lengths and sizes of things that are held in memory one by one.
pub(crate) const MANY: u64 = 1 << 24;
/// Things that run or wait at the same time.
pub(crate) const SIDE_BY_SIDE: u64 = 1 << 16;
/// Threads of a process.
pub(crate) const THREADS: u64 = 4096;
/// A year in seconds, beyond which nobody waits.
pub(crate) const YEAR: u64 = 366 * 24 * 3600;

/// A whole number of 0 to `most`.
pub(crate) fn upto<T: TryFrom<u64> + Clone + Send + Sync + 'static>(
    most: u64,
) -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(..=most)
}

/// A whole number of 1 to `most`.
pub(crate) fn some<T: TryFrom<u64> + Clone + Send + Sync + 'static>(
    most: u64,
) -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..=most)
}

/// A number of `least` to `most`.
pub(crate) fn real<T>(
    least: T,
    most: T,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text| {
        let found = text.trim().parse().ok();
        found
            .filter(|found| (least..=most).contains(found))
            .ok_or_else(|| format!("expected a number of {least} to {most}"))
    }
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use clap::error::ErrorKind;
    use clap::{Arg, Command, CommandFactory};

    use crate::arguments::Arguments;

    /// Seeds, of which every number is one; and ports, whose range is that of their type.
    const WHOLE_RANGE: [&str; 1] = ["seed"];

    /// What a command says to a value of an option.
    fn said(command: &Command, option: &Arg, value: &str) -> Option<ErrorKind> {
        let flag = format!("--{}={value}", option.get_long().expect("an option"));
        let alone = command.clone().mut_args(|arg| arg.required(false));
        alone.try_get_matches_from(["lathe", &flag]).err().map(|error| error.kind())
    }

    /// The options of every command that take a number, with whether it is a whole one.
    fn numbers(command: &Command, path: &str, found: &mut Vec<(Command, Arg, String, bool)>) {
        for option in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let kind = option.get_value_parser().type_id();
            let whole = [
                TypeId::of::<u8>(),
                TypeId::of::<u16>(),
                TypeId::of::<u32>(),
                TypeId::of::<u64>(),
                TypeId::of::<usize>(),
            ];
            let real = [TypeId::of::<f32>(), TypeId::of::<f64>()];
            let is_whole = whole.iter().any(|id| kind == *id);
            if option.get_action().takes_values() && (is_whole || real.iter().any(|id| kind == *id))
            {
                let name = format!("{path} --{}", option.get_long().expect("an option"));
                found.push((command.clone(), option.clone(), name, is_whole));
            }
        }
        for inner in command.get_subcommands() {
            numbers(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }

    #[test]
    fn every_number_of_every_command_has_a_range() {
        let mut command = Arguments::command();
        command.build();
        let mut found = Vec::new();
        numbers(&command, "lathe", &mut found);
        assert!(found.len() > 70, "only {} options", found.len());
        for (command, option, name, is_whole) in &found {
            let mut outside = vec!["", "x", "NaN", "inf", "-inf", "1e308", "-1e308"];
            if *is_whole {
                outside.extend(["-1", "1.5", "18446744073709551616"]);
                if !WHOLE_RANGE.contains(&option.get_long().expect("an option")) {
                    outside.extend(["18446744073709551615", "9223372036854775807"]);
                }
            }
            for value in outside {
                let kind = said(command, option, value);
                let refused = matches!(
                    kind,
                    Some(
                        ErrorKind::ValueValidation
                            | ErrorKind::InvalidValue
                            | ErrorKind::TooFewValues
                    )
                );
                assert!(refused, "{name} takes {value:?} ({kind:?}): give it a range");
            }
        }
    }
}
